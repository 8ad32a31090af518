#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "cpu_kernels.h"
#ifdef PEARL_WITH_CUDA
#include "sample/sample_cuda.h"
#endif

namespace py = pybind11;

namespace {

// Tensors come as their data_ptr(); 0 stands for an absent one.
using Address = std::uintptr_t;

// (address, dtype, vocab, batch stride, row stride), strides in elements
using Logits = std::tuple<Address, int32_t, int64_t, int64_t, int64_t>;

// (logits, threshold, lse, d2t)
using Draft = std::tuple<Logits, Address, Address, Address>;

// (temperature, top_k, top_p, min_p, seed)
using Params = std::tuple<Address, Address, Address, Address, Address>;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

pearl::LogitsView logits_view(const Logits& logits) {
  const auto& [address, dtype, vocab, batch_stride, row_stride] = logits;
  return {pointer<void>(address), static_cast<pearl::DType>(dtype), vocab, batch_stride, row_stride};
}

pearl::DraftSide draft_side(const Draft& draft) {
  const auto& [logits, threshold, lse, d2t] = draft;
  return {logits_view(logits), pointer<float>(threshold), pointer<float>(lse), pointer<int64_t>(d2t)};
}

pearl::SamplingParams sampling_params(const Params& params) {
  const auto& [temperature, top_k, top_p, min_p, seed] = params;
  return {pointer<float>(temperature), pointer<int32_t>(top_k), pointer<float>(top_p), pointer<float>(min_p),
          pointer<int64_t>(seed)};
}

void sample(int64_t batch, const Logits& logits, const Params& params, Address positions, Address epochs,
            uint32_t purpose, Address tokens, Address threshold, Address lse, Address status) {
  pearl::SampleArgs args;
  args.logits = logits_view(logits);
  args.params = sampling_params(params);
  args.positions = pointer<int64_t>(positions);
  args.epochs = pointer<int64_t>(epochs);
  args.purpose = static_cast<pearl::Purpose>(purpose);
  args.batch = batch;
  args.tokens = pointer<int64_t>(tokens);
  args.threshold = pointer<float>(threshold);
  args.lse = pointer<float>(lse);
  args.status = pointer<int32_t>(status);
  pearl::cpu_kernels().sample(args);
}

void verify(int64_t batch, int64_t width, const Logits& target, const Draft& draft, const Params& params, int32_t rule,
            Address draft_tokens, Address chain_len, Address positions, Address num_accepted, Address next_token,
            Address status) {
  pearl::VerifyArgs args;
  args.target = logits_view(target);
  args.draft = draft_side(draft);
  args.params = sampling_params(params);
  args.rule = static_cast<pearl::Rule>(rule);
  args.batch = batch;
  args.width = width;
  args.draft_tokens = pointer<int64_t>(draft_tokens);
  args.chain_len = pointer<int32_t>(chain_len);
  args.positions = pointer<int64_t>(positions);
  args.num_accepted = pointer<int32_t>(num_accepted);
  args.next_token = pointer<int64_t>(next_token);
  args.status = pointer<int32_t>(status);
  pearl::cpu_kernels().verify(args);
}

// (tokens, stride between rows, committed, window, max_len, eos_ids, eos ids per row, finished, status)
using State = std::tuple<Address, int64_t, Address, Address, Address, Address, int64_t, Address, Address>;

void advance(int64_t batch, int64_t width, const State& state, const Logits& target, const Draft& draft,
             const Params& params, int32_t rule, int32_t next_window, Address num_emitted, Address num_accepted) {
  const auto& [tokens, tokens_stride, committed, window, max_len, eos_ids, eos_count, finished, status] = state;
  pearl::AdvanceArgs args;
  args.tokens = pointer<int64_t>(tokens);
  args.tokens_stride = tokens_stride;
  args.committed = pointer<int64_t>(committed);
  args.window = pointer<int32_t>(window);
  args.max_len = pointer<int64_t>(max_len);
  args.eos_ids = pointer<int64_t>(eos_ids);
  args.eos_count = eos_count;
  args.finished = pointer<int32_t>(finished);
  args.state_status = pointer<int32_t>(status);
  args.target = logits_view(target);
  args.draft = draft_side(draft);
  args.params = sampling_params(params);
  args.rule = static_cast<pearl::Rule>(rule);
  args.batch = batch;
  args.width = width;
  args.next_window = next_window;
  args.num_emitted = pointer<int32_t>(num_emitted);
  args.num_accepted = pointer<int32_t>(num_accepted);
  pearl::cpu_kernels().advance(args);
}

#ifdef PEARL_WITH_CUDA
void sample_greedy_cuda(int64_t batch, const Logits& logits, Address tokens, Address threshold, Address lse,
                        Address status, int device, Address stream) {
  pearl::GreedyCudaArgs args;
  args.logits = logits_view(logits);
  args.batch = batch;
  args.device = device;
  args.stream = pointer<void>(stream);
  args.tokens = pointer<int64_t>(tokens);
  args.threshold = pointer<float>(threshold);
  args.lse = pointer<float>(lse);
  args.status = pointer<int32_t>(status);
  if (const char* error = pearl::sample_greedy_cuda(args)) {
    throw std::runtime_error(std::string("sample_greedy_cuda: ") + error);
  }
}
#endif

float read_bytes(Address address, std::size_t bytes) {
  return pearl::cpu_kernels().read_bytes(pointer<void>(address), bytes);
}

#if defined(__clang__)
constexpr const char* kCompiler = "Clang " __clang_version__;
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif

py::dict build_info() {
  py::list levels;
  for (const pearl::CpuKernels& kernels : pearl::compiled_kernels()) levels.append(kernels.level);
  py::dict info;
  info["version"] = PEARL_VERSION;
  info["compiler"] = kCompiler;
  info["simd_levels"] = py::tuple(levels);
  info["simd_level"] = pearl::cpu_kernels().level;
#ifdef PEARL_WITH_CUDA
  info["cuda"] = true;
  info["cuda_architectures"] = PEARL_CUDA_ARCHITECTURES;
#else
  info["cuda"] = false;
  info["cuda_architectures"] = "";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using py::arg;
  using WithoutGil = py::call_guard<py::gil_scoped_release>;
  m.doc() = "Native kernels. They take raw addresses and check nothing: call them through pearl_kernels.";
  m.def("build_info", &build_info, "How this binary was built, and the SIMD level it runs at.");
  m.def("sample", &sample, WithoutGil(), arg("batch"), arg("logits"), arg("params"), arg("positions"), arg("epochs"),
        arg("purpose"), arg("tokens"), arg("threshold"), arg("lse"), arg("status"));
  m.def("verify", &verify, WithoutGil(), arg("batch"), arg("width"), arg("target"), arg("draft"), arg("params"),
        arg("rule"), arg("draft_tokens"), arg("chain_len"), arg("positions"), arg("num_accepted"), arg("next_token"),
        arg("status"));
  m.def("advance", &advance, WithoutGil(), arg("batch"), arg("width"), arg("state"), arg("target"), arg("draft"),
        arg("params"), arg("rule"), arg("next_window"), arg("num_emitted"), arg("num_accepted"));
#ifdef PEARL_WITH_CUDA
  m.def("sample_greedy_cuda", &sample_greedy_cuda, WithoutGil(), arg("batch"), arg("logits"), arg("tokens"),
        arg("threshold"), arg("lse"), arg("status"), arg("device"), arg("stream"));
#endif
  m.def("read_bytes", &read_bytes, WithoutGil(), arg("address"), arg("bytes"),
        "A checksum of whole vectors of memory: the cost of reading it once, for benchmarks.");
}
