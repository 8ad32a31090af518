#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "common/parallel.h"
#include "cpu_kernels.h"
#include "draft_chain/draft_chain.h"
#include "induction/induction.h"
#include "rounds/rounds.h"
#ifdef PEARL_WITH_CUDA
#include "common/cuda/memory.h"
#include "sample/sample_cuda.h"
#include "verify/chain_cuda.h"
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

pearl::SampleArgs sample_args(int64_t batch, const Logits& logits, const Params& params, Address positions,
                              Address epochs, uint32_t purpose, Address tokens, Address threshold, Address lse,
                              Address status) {
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
  return args;
}

pearl::VerifyArgs verify_args(int64_t batch, int64_t width, const Logits& target, const Draft& draft,
                              const Params& params, int32_t rule, Address draft_tokens, Address chain_len,
                              Address positions, Address num_accepted, Address next_token, Address status) {
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
  return args;
}

// (tokens, stride between rows, committed, window, max_len, eos_ids, eos ids per row, finished, status)
using State = std::tuple<Address, int64_t, Address, Address, Address, Address, int64_t, Address, Address>;

pearl::AdvanceArgs advance_args(int64_t batch, int64_t width, const State& state, const Logits& target,
                                const Draft& draft, const Params& params, int32_t rule, int32_t next_window,
                                Address num_emitted, Address num_accepted) {
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
  return args;
}

// tokens: (address, stride between rows, batch, capacity)
pearl::InductionArgs induction_args(const Logits& logits, Address d2t,
                                    const std::tuple<Address, int64_t, int64_t, int64_t>& tokens, Address lengths,
                                    Address strengths, int64_t most) {
  const auto& [address, stride, batch, capacity] = tokens;
  return {logits_view(logits),
          pointer<int64_t>(d2t),
          pointer<int64_t>(address),
          stride,
          batch,
          capacity,
          pointer<int64_t>(lengths),
          pointer<float>(strengths),
          most};
}

pearl::NormArgs norm_args(Address x, int64_t rows, int64_t size, Address weight, float offset, float eps, Address out) {
  return {pointer<float>(x), rows, size, pointer<float>(weight), offset, eps, pointer<float>(out)};
}

// (weight, type, outputs, weight stride, packed, bias, scale, out)
using Linear = std::tuple<Address, int32_t, int64_t, int64_t, bool, Address, Address, Address>;

pearl::LinearLayer linear_layer(const Linear& linear) {
  const auto& [weight, type, outputs, weight_stride, packed, bias, scale, out] = linear;
  return {pointer<void>(weight),
          static_cast<pearl::WeightType>(type),
          outputs,
          weight_stride,
          packed,
          pointer<float>(bias),
          pointer<float>(scale),
          pointer<float>(out)};
}

void window_linear(Address x, int64_t rows, int64_t x_stride, int64_t inputs, const std::vector<Linear>& linears,
                   int threads) {
  std::vector<pearl::LinearLayer> layers;
  layers.reserve(linears.size());
  for (const Linear& linear : linears) layers.push_back(linear_layer(linear));
  const auto count = static_cast<int64_t>(layers.size());
  pearl::cpu_kernels().window_linear({pointer<float>(x), rows, x_stride, inputs, layers.data(), count, threads});
}

// (address, strides between batch rows, heads and positions in elements)
using Heads = std::tuple<Address, int64_t, int64_t, int64_t>;

pearl::HeadsView heads_view(const Heads& heads) {
  const auto& [address, batch_stride, head_stride, position_stride] = heads;
  return {pointer<void>(address), batch_stride, head_stride, position_stride};
}

// sizes: (batch, width, heads, kv_heads, head_dim, capacity)
pearl::AttentionArgs attention_args(int32_t dtype,
                                    const std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>& sizes,
                                    const Heads& q, const Heads& k_cache, const Heads& v_cache, const Heads& k_new,
                                    const Heads& v_new, Address seq_lens, float scale, int64_t window, float softcap,
                                    Address out, int threads) {
  pearl::AttentionArgs args;
  args.dtype = static_cast<pearl::DType>(dtype);
  std::tie(args.batch, args.width, args.heads, args.kv_heads, args.head_dim, args.capacity) = sizes;
  args.q = heads_view(q);
  args.k_cache = heads_view(k_cache);
  args.v_cache = heads_view(v_cache);
  args.k_new = heads_view(k_new);
  args.v_new = heads_view(v_new);
  args.seq_lens = pointer<int64_t>(seq_lens);
  args.scale = scale;
  args.window = window;
  args.softcap = softcap;
  args.out = pointer<void>(out);
  args.threads = threads;
  return args;
}

// (norms before attention, before the MLP, of each query, of each key; eps of all;
//  q, k, v, output, gate, up, down, without their outputs' addresses)
using Weights = std::tuple<std::tuple<Address, Address, Address, Address>, float,
                           std::tuple<Linear, Linear, Linear, Linear, Linear, Linear, Linear>>;

pearl::LayerWeights layer_weights(const Weights& weights) {
  const auto& [norms, eps, linears] = weights;
  pearl::LayerWeights found;
  found.attention_norm = pointer<float>(std::get<0>(norms));
  found.mlp_norm = pointer<float>(std::get<1>(norms));
  found.q_norm = pointer<float>(std::get<2>(norms));
  found.k_norm = pointer<float>(std::get<3>(norms));
  found.eps = eps;
  std::tie(found.q, found.k, found.v, found.output, found.gate, found.up, found.down) =
      std::apply([](const auto&... each) { return std::make_tuple(linear_layer(each)...); }, linears);
  return found;
}

// (batch, width, size, heads, kv_heads, head_dim, inner, capacity)
using LayerSizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

// (cos, sin, stride between batch rows)
using Angles = std::tuple<Address, Address, int64_t>;

pearl::LayerArgs layer_args(const LayerSizes& sizes, const Angles& angles, Address seq_lens, float scale, int threads) {
  pearl::LayerArgs args{};
  std::tie(args.batch, args.width, args.size, args.heads, args.kv_heads, args.head_dim, args.inner, args.capacity) =
      sizes;
  args.cos = pointer<float>(std::get<0>(angles));
  args.sin = pointer<float>(std::get<1>(angles));
  args.rotary_stride = std::get<2>(angles);
  args.seq_lens = pointer<int64_t>(seq_lens);
  args.scale = scale;
  args.threads = threads;
  return args;
}

void window_layer(const LayerSizes& sizes, Address x, const Weights& weights, const Heads& k_cache,
                  const Heads& v_cache, const Angles& angles, Address seq_lens, float scale, Address out, int threads) {
  pearl::LayerArgs args = layer_args(sizes, angles, seq_lens, scale, threads);
  args.x = pointer<float>(x);
  args.weights = layer_weights(weights);
  args.k_cache = heads_view(k_cache);
  args.v_cache = heads_view(v_cache);
  args.out = pointer<float>(out);
  pearl::cpu_kernels().window_layer(args);
}

// Where the weights of a whole decoder are: looked up once for as many calls as they stay there.
struct DecoderWeights {
  // embedding: (address, type, vocab); norm: (address, eps)
  DecoderWeights(const std::tuple<Address, int32_t, int64_t>& embedding, const std::vector<Weights>& layers,
                 const std::tuple<Address, float>& norm, const Linear& head) {
    args.embedding = pointer<void>(std::get<0>(embedding));
    args.embedding_type = static_cast<pearl::DType>(std::get<1>(embedding));
    args.vocab = std::get<2>(embedding);
    for (const Weights& layer : layers) this->layers.push_back(layer_weights(layer));
    args.norm = pointer<float>(std::get<0>(norm));
    args.eps = std::get<1>(norm);
    args.head = linear_layer(head);
  }

  std::vector<pearl::LayerWeights> layers;
  pearl::DecoderArgs args{};  // all that is not of one window, but for the layers
};

// (sizes, tokens, k and v: (the first layer's cache, stride between layers), (cos, sin, positions), seq_lens, scale,
//  threads)
using Caches = std::tuple<Heads, int64_t>;
using Window = std::tuple<LayerSizes, Address, Caches, Caches, Angles, Address, float, int>;

// Points to the layers of `weights`.
pearl::DecoderArgs decoder_args(const DecoderWeights& weights, const Window& window) {
  const auto& [sizes, tokens, k_caches, v_caches, angles, seq_lens, scale, threads] = window;
  pearl::DecoderArgs args = weights.args;
  args.layers = weights.layers.data();
  args.count = static_cast<int64_t>(weights.layers.size());
  args.tokens = pointer<int64_t>(tokens);
  args.each = layer_args(sizes, angles, seq_lens, scale, threads);
  args.each.k_cache = heads_view(std::get<0>(k_caches));
  args.each.v_cache = heads_view(std::get<0>(v_caches));
  args.positions = std::get<2>(angles);
  args.k_layer_stride = std::get<1>(k_caches);
  args.v_layer_stride = std::get<1>(v_caches);
  return args;
}

void window_decoder(const DecoderWeights& weights, const Window& window, int64_t keep, Address logits) {
  pearl::DecoderArgs args = decoder_args(weights, window);
  args.keep = keep;
  args.head.out = pointer<float>(logits);
  pearl::cpu_kernels().window_decoder(args);
}

// text: (address, stride between rows, length); strengths: (address, most); out: (logits, tokens, threshold, lse, status)
pearl::DraftChainArgs chain_args(const DecoderWeights& weights, const Window& window, Address lengths, int64_t steps,
                                 int64_t vocab, const Params& params, Address epochs, uint32_t purpose, Address d2t,
                                 const std::tuple<Address, int64_t, int64_t>& text,
                                 const std::tuple<Address, int64_t>& strengths,
                                 const std::tuple<Address, Address, Address, Address, Address>& out) {
  pearl::DraftChainArgs args;
  args.decoder = decoder_args(weights, window);
  args.decoder.lengths = pointer<int64_t>(lengths);
  args.steps = steps;
  args.vocab = vocab;
  args.params = sampling_params(params);
  args.epochs = pointer<int64_t>(epochs);
  args.purpose = static_cast<pearl::Purpose>(purpose);
  args.d2t = pointer<int64_t>(d2t);
  args.text = pointer<int64_t>(std::get<0>(text));
  args.text_stride = std::get<1>(text);
  args.text_length = std::get<2>(text);
  args.strengths = pointer<float>(std::get<0>(strengths));
  args.most = std::get<1>(strengths);
  args.logits = pointer<float>(std::get<0>(out));
  args.tokens = pointer<int64_t>(std::get<1>(out));
  args.threshold = pointer<float>(std::get<2>(out));
  args.lse = pointer<float>(std::get<3>(out));
  args.status = pointer<int32_t>(std::get<4>(out));
  return args;
}

// (weights, a window of any tokens, columns that are drawn from, purpose, d2t, text, strengths), as in draft_chain
using Drafter = std::tuple<const DecoderWeights*, Window, int64_t, uint32_t, Address,
                           std::tuple<Address, int64_t, int64_t>, std::tuple<Address, int64_t>>;

// window: of the target, of any tokens. The addresses, and both models' weights, are the caller's to keep.
std::unique_ptr<pearl::Rounds> rounds(int64_t batch, const State& state, const Params& params, int32_t rule,
                                      const DecoderWeights& target, const Window& window,
                                      const std::optional<Drafter>& draft) {
  pearl::RoundArgs args{};
  args.advance = advance_args(batch, 0, state, {}, {}, params, rule, 0, 0, 0);
  args.target = decoder_args(target, window);
  if (draft) {
    const auto& [weights, of_draft, vocab, purpose, d2t, text, strengths] = *draft;
    args.draft = chain_args(*weights, of_draft, 0, 0, vocab, params, 0, purpose, d2t, text, strengths, {});
  }
  return std::make_unique<pearl::Rounds>(args);
}

// (what the draft died of or None; seconds since the call of its end, the window's begin and the window's end; tokens
//  that each row committed; how many of them were drafted)
std::tuple<std::optional<std::string>, std::tuple<double, double, double>, std::vector<std::vector<int64_t>>,
           std::vector<int32_t>>
run_round(pearl::Rounds& rounds, int64_t gamma, int64_t missed, const std::vector<std::vector<int64_t>>& guesses,
          int threads) {
  pearl::RoundOutcome outcome = rounds.run(gamma, missed, guesses, threads);
  std::optional<std::string> error;
  if (!outcome.draft_error.empty()) error = std::move(outcome.draft_error);
  return {std::move(error),
          {outcome.drafted_s, outcome.begun_s, outcome.verified_s},
          std::move(outcome.emitted),
          std::move(outcome.accepted)};
}

// (logits or 0, threshold, lse)
using DraftRows = std::tuple<Address, Address, Address>;

pearl::DraftRows draft_rows(const DraftRows& rows) {
  const auto& [logits, threshold, lse] = rows;
  return {pointer<float>(logits), pointer<float>(threshold), pointer<float>(lse)};
}

void draft_round(pearl::Rounds& rounds, int64_t gamma, int64_t missed, const DraftRows& into, int threads) {
  rounds.draft(gamma, missed, draft_rows(into), threads);
}

// As run_round, without what it says of the draft and of times.
std::tuple<std::vector<std::vector<int64_t>>, std::vector<int32_t>> commit_round(pearl::Rounds& rounds, int64_t gamma,
                                                                                 const DraftRows& drafted,
                                                                                 const DraftRows& chain, int threads) {
  pearl::RoundOutcome outcome = rounds.commit(gamma, draft_rows(drafted), draft_rows(chain), threads);
  return {std::move(outcome.emitted), std::move(outcome.accepted)};
}

#ifdef PEARL_WITH_CUDA
// (device, stream, multiprocessors of the device, the first number of its compute capability)
using Queue = std::tuple<int, Address, int, int>;

pearl::CudaQueue cuda_queue(const Queue& queue) {
  const auto& [device, stream, multiprocessors, capability] = queue;
  return {device, pointer<void>(stream), multiprocessors, capability};
}

void expect_success(const char* error) {
  if (error) throw std::runtime_error(std::string("cuda backend: ") + error);
}

const char* cuda_problem(int device) {
  const char* const problem = pearl::load_sample_cuda(device);
  return problem ? problem : pearl::load_chains_cuda(device);
}

pearl::VerifyArgs chains_of(const pearl::AdvanceArgs& state) {
  pearl::VerifyArgs args{};
  args.target = state.target;
  args.draft = state.draft;
  args.params = state.params;
  args.rule = state.rule;
  args.batch = state.batch;
  args.width = state.width;
  return args;
}

// (device, counters, their bytes, scratch, its bytes)
using Memory = std::tuple<int, Address, int64_t, Address, int64_t>;

std::vector<Memory> cuda_memory() {
  std::vector<Memory> all;
  for (const pearl::cuda::Memory& memory : pearl::cuda::memory_in_use()) {
    all.emplace_back(memory.device, reinterpret_cast<Address>(memory.counters), memory.counters_bytes,
                     reinterpret_cast<Address>(memory.scratch), memory.scratch_bytes);
  }
  return all;
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

// Defines `name` with the arguments of `build`, whose result `run` gets.
template <typename Args, typename... Given, typename Run>
void def_op(py::module_& m, const char* name, Args (*build)(Given...), Run run) {
  m.def(name, [build, run](Given... given) { run(build(given...)); }, py::call_guard<py::gil_scoped_release>());
}

// The same, with the number of threads as one more argument, which `run` gets as well.
template <typename Args, typename... Given, typename Run>
void def_shared_op(py::module_& m, const char* name, Args (*build)(Given...), Run run) {
  m.def(
      name, [build, run](Given... given, int threads) { run(build(given...), threads); },
      py::call_guard<py::gil_scoped_release>());
}

#ifdef PEARL_WITH_CUDA
// The same, with a Queue in its place.
template <typename Args, typename... Given, typename Run>
void def_cuda_op(py::module_& m, const char* name, Args (*build)(Given...), Run run) {
  m.def(
      name,
      [build, run](Given... given, const Queue& queue) { expect_success(run(build(given...), cuda_queue(queue))); },
      py::call_guard<py::gil_scoped_release>());
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  using py::arg;
  using WithoutGil = py::call_guard<py::gil_scoped_release>;
  m.doc() = "Native kernels. They take raw addresses and check nothing: call them through pearl_kernels.";
  m.def("build_info", &build_info, "How this binary was built, and the SIMD level it runs at.");
  def_shared_op(m, "sample", &sample_args, [](const auto&... given) { pearl::cpu_kernels().sample(given...); });
  def_shared_op(m, "verify", &verify_args, [](const auto&... given) { pearl::cpu_kernels().verify(given...); });
  def_shared_op(m, "advance", &advance_args, [](const auto&... given) { pearl::cpu_kernels().advance(given...); });
  def_op(m, "induce", &induction_args, [](const auto& args) { pearl::induce(args); });
  m.def("window_linear", &window_linear, WithoutGil());
  def_op(m, "window_norm", &norm_args, [](const auto& args) { pearl::cpu_kernels().window_norm(args); });
  def_op(m, "window_attention", &attention_args, [](const auto& args) { pearl::cpu_kernels().window_attention(args); });
  m.def("window_layer", &window_layer, WithoutGil());
  py::class_<DecoderWeights>(m, "DecoderWeights", py::module_local())
      .def(py::init<const std::tuple<Address, int32_t, int64_t>&, const std::vector<Weights>&,
                    const std::tuple<Address, float>&, const Linear&>());
  m.def("window_decoder", &window_decoder, WithoutGil());
  def_op(m, "draft_chain", &chain_args, [](const auto& args) { pearl::draft_chain(args); });
  py::class_<pearl::Rounds>(m, "Rounds", py::module_local())
      .def(py::init(&rounds))
      .def("run", &run_round, WithoutGil())
      .def("draft", &draft_round, WithoutGil())
      .def("read_windows", &pearl::Rounds::read_windows, WithoutGil())
      .def("commit", &commit_round, WithoutGil());
#ifdef PEARL_WITH_CUDA
  m.def("cuda_problem", &cuda_problem, WithoutGil(), arg("device"),
        "What keeps the kernels from running on a device, or None: then all of them are loaded.");
  m.def("cuda_memory", &cuda_memory, "What the kernels' blocks talk through, for tests to look at and to poison.");
  def_cuda_op(m, "sample_cuda", &sample_args,
              [](const auto& args, const auto& queue) { return pearl::sample_cuda(args, queue); });
  def_cuda_op(m, "verify_cuda", &verify_args,
              [](const auto& args, const auto& queue) { return pearl::judge_chains_cuda({args, {}, false}, queue); });
  def_cuda_op(m, "advance_cuda", &advance_args, [](const auto& args, const auto& queue) {
    return pearl::judge_chains_cuda({chains_of(args), args, true}, queue);
  });
#endif
  m.def("release_threads", &pearl::release_threads, WithoutGil(),
        "Ends the OpenMP threads that wait for the calling thread, until it has work for them again.");
  m.def("read_bytes", &read_bytes, WithoutGil(), arg("address"), arg("bytes"),
        "A checksum of whole vectors of memory: the cost of reading it once, for benchmarks.");
}
