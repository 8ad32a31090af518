// Where the C library checks longjmp, it takes a jump to another stack for a mistake.
#undef _FORTIFY_SOURCE

#include <cuda_runtime.h>
#include <link.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cassert>
#include <future>
#include <map>
#include <mutex>
#include <new>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace emulation {
namespace {

constexpr unsigned kWorkers = 2;            // OS threads of a grid
constexpr unsigned kBlocksOfOneWorker = 3;  // grids of no more than these need no second one
constexpr unsigned kYieldOneIn = 8;
constexpr std::size_t kStackBytes = 256 << 10, kGuardBytes = 4 << 10;
constexpr const char* kExited = "exited";

// A thread of a block.
struct Fiber {
  jmp_buf context;  // where it goes on
  const char* op = kExited;
  Site site;
};

// Threads that wait for each other.
struct Group {
  std::span<Fiber> fibers;
  unsigned arrived = 0, meetings = 0;
};

// Lanes write what they come with for every other meeting: all have read that by the time any comes to the next but one.
struct Warp : Group {
  Lanes bits[2];
};

// Runs blocks one after the other. Which thread of the block goes on when one has to wait is random; half of the blocks
// prefer the thread that could go on last, so that warps run far ahead of others.
struct Multiprocessor {
  explicit Multiprocessor(unsigned threads);

  // What threads waited for until none could go on, or an empty text. After that it cannot run another.
  std::string run_block(unsigned seed, const std::function<void()>& of_thread);

  void live();
  void meet(Group& group, const char* op, Site site);
  void maybe_yield();
  void wait();
  void go_to(Fiber& fiber);
  std::string standstill() const;
  uint64_t below(uint64_t bound) { return random() * bound >> 31; }

  std::vector<Fiber> fibers;
  Fiber& home = fibers.back();  // run_block itself
  Fiber* running = &home;
  std::vector<Fiber*> ready;  // all that could go on but the running one
  Group block;
  std::vector<Warp> warps;
  const std::function<void()>* thread = nullptr;
  std::minstd_rand random;
  bool latest_first = false;
};

thread_local Multiprocessor* here = nullptr;

// Leaves each fiber at a place that a jump can go to. The jumps that follow need no system call, as contexts do.
Multiprocessor::Multiprocessor(unsigned threads)
    : fibers(threads + 1), block{{fibers.data(), threads}}, warps(threads / warpSize) {
  here = this;
  for (unsigned i = 0; i < warps.size(); ++i) warps[i].fibers = block.fibers.subspan(i * warpSize, warpSize);
  for (unsigned i = 0; i < threads; ++i) {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* stack = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    mprotect(stack, kGuardBytes, PROT_NONE);
    ucontext_t birth;
    getcontext(&birth);
    birth.uc_stack.ss_sp = stack;
    // Stacks that all began at the same place of a page would fight for the same few lines of the cache.
    birth.uc_stack.ss_size = kGuardBytes + kStackBytes - i % 64 * 320;
    makecontext(&birth, [] { here->live(); }, 0);
    running = &fibers[i];
    if (_setjmp(home.context) == 0) setcontext(&birth);
  }
}

void Multiprocessor::live() {
  for (;;) {
    running->op = kExited;
    wait();
    (*thread)();
  }
}

std::string Multiprocessor::run_block(unsigned seed, const std::function<void()>& of_thread) {
  here = this;
  thread = &of_thread;
  random.seed(seed);
  latest_first = below(2) == 0;
  for (Fiber& fiber : block.fibers) ready.push_back(&fiber);
  std::rotate(ready.begin(), ready.begin() + below(ready.size()), ready.end());
  wait();
  return standstill();
}

void Multiprocessor::go_to(Fiber& fiber) {
  Fiber& before = *std::exchange(running, &fiber);
  threadIdx.x = static_cast<unsigned>(&fiber - fibers.data());
  if (_setjmp(before.context) == 0) _longjmp(fiber.context, 1);
}

// Until another fiber wakes the running one. Home waits until there is none that could go on.
void Multiprocessor::wait() {
  if (ready.empty()) return go_to(home);
  if (!latest_first) std::swap(ready[below(ready.size())], ready.back());
  Fiber& next = *ready.back();
  ready.pop_back();
  go_to(next);
}

void Multiprocessor::maybe_yield() {
  if (ready.empty() || below(kYieldOneIn) != 0) return;
  Fiber*& other = ready[below(ready.size())];
  go_to(*std::exchange(other, running));
}

void Multiprocessor::meet(Group& group, const char* op, Site site) {
  running->op = op;
  running->site = site;
  const auto came_too = [op](const Fiber& fiber) { return fiber.op == op; };
  if (++group.arrived < group.fibers.size() || !std::all_of(group.fibers.begin(), group.fibers.end(), came_too)) {
    return wait();
  }
  group.arrived = 0;
  ++group.meetings;
  const std::size_t first = below(group.fibers.size());
  for (std::size_t i = 0; i < group.fibers.size(); ++i) {
    Fiber& fiber = group.fibers[(first + i) % group.fibers.size()];
    if (&fiber != running) ready.push_back(&fiber);
  }
  maybe_yield();
}

// Which threads are where, unless all have exited.
std::string Multiprocessor::standstill() const {
  std::map<std::string, std::vector<unsigned>> threads_at;
  for (unsigned i = 0; const Fiber& fiber : block.fibers) {
    const std::string place = std::string(fiber.site.file_name()) + ":" + std::to_string(fiber.site.line());
    threads_at[fiber.op == kExited ? kExited : std::string("in ") + fiber.op + " at " + place].push_back(i++);
  }
  if (threads_at.size() == 1 && threads_at.contains(kExited)) return {};
  std::string text = "threads wait for each other forever";
  for (const auto& [place, threads] : threads_at) {
    text += "; " + std::to_string(threads.size()) + " " + place + " (the first is thread " +
            std::to_string(threads.front()) + ")";
  }
  return text;
}

// The calling OS thread's copy of all thread_local variables of this library: shared memory, and a few of ours.
std::span<char> shared_memory() {
  std::span<char> found;
  const auto look = [](dl_phdr_info* info, std::size_t, void* result) {
    const auto begin = static_cast<char*>(info->dlpi_tls_data), ours = reinterpret_cast<char*>(&threadIdx);
    for (const auto& part : std::span(info->dlpi_phdr, info->dlpi_phnum)) {
      const bool is_ours = part.p_type == PT_TLS && begin <= ours && ours < begin + part.p_memsz;
      if (is_ours) *static_cast<std::span<char>*>(result) = {begin, part.p_memsz};
    }
    return 0;
  };
  threadIdx = {};  // they are not allocated before their first use
  dl_iterate_phdr(look, &found);
  return found;
}

std::mutex mutex;
std::multimap<unsigned, Multiprocessor*> idle;  // by the threads of a block

Multiprocessor* take(unsigned threads) {
  const std::lock_guard lock(mutex);
  const auto found = idle.extract(threads);
  return found ? found.mapped() : new Multiprocessor(threads);
}

void give_back(Multiprocessor* multiprocessor, unsigned threads) {
  const std::lock_guard lock(mutex);
  idle.emplace(threads, multiprocessor);
}

}  // namespace

void meet_block(const char* op, Site site) { here->meet(here->block, op, site); }

const Lanes& meet_warp(unsigned mask, uint64_t bits, const char* op, Site site) {
  assert(mask == ~0u && "the emulation knows masks of all lanes alone");
  Warp& warp = here->warps[threadIdx.x / warpSize];
  Lanes& all = warp.bits[warp.meetings % 2];
  all[threadIdx.x % warpSize] = bits;
  here->meet(warp, op, site);
  return all;
}

void maybe_yield() { here->maybe_yield(); }

std::string run(unsigned blocks, unsigned threads, const std::function<void()>& thread) {
  static std::atomic<unsigned> launches{0};
  const char* chosen = std::getenv("PEARL_EMULATION_SEED");
  std::mt19937 random((chosen != nullptr ? std::atoi(chosen) : 0) * 1000003u + launches++);
  std::vector<unsigned> order(blocks), seeds(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random);
  std::generate(seeds.begin(), seeds.end(), random);

  std::atomic<unsigned> started{0};
  const auto work = [&]() -> std::string {
    const std::span<char> shared = shared_memory();
    Multiprocessor* const multiprocessor = take(threads);
    for (unsigned i = started++; i < blocks; i = started++) {
      std::fill(shared.begin(), shared.end(), static_cast<char>(seeds[i]));  // whatever was there, as on a GPU
      blockIdx = {order[i], 0, 0};
      threadIdx = {0, 0, 0};
      blockDim = {threads};
      gridDim = {blocks};
      const std::string problem = multiprocessor->run_block(seeds[i], thread);
      if (problem.empty()) continue;
      started = blocks;
      return "block " + std::to_string(order[i]) + " of " + std::to_string(blocks) + ": " + problem;
    }
    give_back(multiprocessor, threads);
    return {};
  };
  // Never on the calling thread, whose thread_local variables are not shared memory.
  std::vector<std::future<std::string>> workers(blocks <= kBlocksOfOneWorker ? 1 : kWorkers);
  for (auto& worker : workers) worker = std::async(std::launch::async, work);
  std::string problem;
  for (auto& worker : workers) problem += worker.get();
  return problem;
}

}  // namespace emulation
