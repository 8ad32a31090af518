// Where the C library checks longjmp, it takes a jump to another stack for a mistake.
#undef _FORTIFY_SOURCE

#include "emulation.h"

#include <cuda_runtime.h>
#include <link.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <atomic>
#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace emulation {
namespace {

constexpr unsigned kWarp = warpSize;
constexpr unsigned kWorkers = 2;            // OS threads of a grid
constexpr unsigned kBlocksOfOneWorker = 3;  // grids of no more than these need no second one
constexpr unsigned kYieldOneIn = 8;
constexpr uint64_t kGarbage = 0xfedcba9876543210u;  // what a shuffle from a lane outside of the mask gives
constexpr std::size_t kStackBytes = 256 << 10, kGuardBytes = 4 << 10;

constexpr const char* kNames[] = {
    "__syncthreads", "__syncthreads_or", "__syncthreads_and", "__syncthreads_count", "__syncwarp",
    "__shfl_sync",   "__shfl_xor_sync",  "__shfl_up_sync",    "__shfl_down_sync",    "__ballot_sync",
    "__any_sync",    "__all_sync",       "__reduce_add_sync", "__reduce_min_sync",   "__reduce_max_sync",
};
static_assert(std::size(kNames) == static_cast<std::size_t>(Op::kCount));

thread_local std::string problem_of_last_launch;

// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  unsigned below(std::size_t bound) { return static_cast<unsigned>((bits() >> 32) * bound >> 32); }

 private:
  uint64_t state_;
};

// Stacks are kept for the next launch.
class Stacks {
 public:
  char* take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return make();
    char* stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void give_back(char* stack) {
    const std::lock_guard lock(mutex_);
    free_.push_back(stack);
  }

 private:
  static char* make() {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, kGuardBytes, PROT_NONE);
    return static_cast<char*>(memory) + kGuardBytes;
  }

  std::mutex mutex_;
  std::vector<char*> free_;
};
Stacks stacks;

// The calling OS thread's copy of all thread_local variables of this library: shared memory, and a few of ours.
struct ThreadLocals {
  void* begin = nullptr;
  std::size_t bytes = 0;
};
ThreadLocals thread_locals() {
  ThreadLocals found;
  const auto look = [](dl_phdr_info* info, std::size_t, void* result) {
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto begin = static_cast<char*>(info->dlpi_tls_data);
      const auto bytes = info->dlpi_phdr[i].p_memsz;
      const auto ours = reinterpret_cast<char*>(&threadIdx);
      if (info->dlpi_phdr[i].p_type == PT_TLS && begin != nullptr && begin <= ours && ours < begin + bytes) {
        *static_cast<ThreadLocals*>(result) = {begin, bytes};
      }
    }
    return 0;
  };
  threadIdx = {};  // they are not allocated before their first use
  dl_iterate_phdr(look, &found);
  return found;
}

// A thread of a block.
struct Fiber {
  jmp_buf context;
  char* stack;
  bool exited;
  // what it waits for
  Op op;
  unsigned mask;
  uint64_t bits;
  unsigned source;
  Site site;
  // what it gets
  uint64_t result;
};

// Runs blocks one after the other on the OS thread that made it. Which thread of the block goes on when one has to
// wait is random; half of the blocks prefer the thread that could go on last, so that warps run far ahead of others.
class Multiprocessor {
 public:
  Multiprocessor(const Grid& grid, const std::function<void()>& body);
  ~Multiprocessor();
  Multiprocessor(const Multiprocessor&) = delete;
  Multiprocessor& operator=(const Multiprocessor&) = delete;

  // Throws what the kernel throws, or std::runtime_error where threads wait for each other forever.
  void run_block(unsigned index, Random random);

  unsigned meet_block(Op op, bool vote, Site site);
  uint64_t meet_warp(Op op, unsigned mask, uint64_t bits, unsigned source, Site site);
  void maybe_yield();

 private:
  struct Barrier {
    unsigned arrived, votes;
  };
  struct Warp {
    unsigned waiting[static_cast<int>(Op::kCount)];  // lanes, for each operation
  };

  void give_birth(Fiber& fiber);
  static void enter();  // where a fiber's stack begins
  [[noreturn]] void live();
  void begin(unsigned index);
  Fiber& next();
  void wake(Fiber& fiber) { ready_.push_back(&fiber); }
  void wait();
  void go_to(Fiber& fiber);
  void jump(jmp_buf& to);
  bool all_came(const Fiber* warp, unsigned waiting, unsigned mask) const;
  std::string standstill() const;

  const Grid grid_;
  const std::function<void()>& body_;
  const ThreadLocals thread_locals_ = thread_locals();
  std::vector<Fiber> fibers_;
  std::vector<Fiber*> ready_;  // all that could go on but the running one
  Fiber* running_ = nullptr;
  jmp_buf home_;
  Random random_{0};
  bool latest_first_ = false;
  unsigned exited_ = 0;
  std::exception_ptr error_;
  Barrier barriers_[static_cast<int>(Op::kCount)];
  std::vector<Warp> warps_;
};

thread_local Multiprocessor* here = nullptr;

Multiprocessor::Multiprocessor(const Grid& grid, const std::function<void()>& body)
    : grid_(grid), body_(body), fibers_(grid.threads), warps_(grid.threads / kWarp) {
  here = this;
  for (Fiber& fiber : fibers_) {
    fiber.stack = stacks.take();
    give_birth(fiber);
  }
}

// Leaves the fiber at a place that a jump can go to. The jumps that follow need no system call, as contexts do.
__attribute__((noinline)) void Multiprocessor::give_birth(Fiber& fiber) {
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack;
  // Stacks that all began at the same place of a page would fight for the same few lines of the cache.
  context.uc_stack.ss_size = kStackBytes - (&fiber - fibers_.data()) % 64 * 320;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  running_ = &fiber;
  if (_setjmp(home_) == 0) setcontext(&context);
}

Multiprocessor::~Multiprocessor() {
  for (Fiber& fiber : fibers_) stacks.give_back(fiber.stack);
}

void Multiprocessor::enter() { here->live(); }

void Multiprocessor::live() {
  jump(home_);
  for (;;) {
    try {
      body_();
    } catch (...) {
      error_ = std::current_exception();
    }
    if (error_) _longjmp(home_, 1);  // not from the handler, which has to end first
    running_->exited = true;
    ++exited_;
    if (exited_ == fibers_.size()) {
      jump(home_);
    } else {
      wait();
    }
  }
}

void Multiprocessor::run_block(unsigned index, Random random) {
  random_ = random;
  begin(index);
  if (_setjmp(home_) == 0) go_to(next());
  if (error_) std::rethrow_exception(error_);
}

// Shared memory is whatever was there, as on a GPU.
void Multiprocessor::begin(unsigned index) {
  std::memset(thread_locals_.begin, static_cast<int>(random_.bits() & 0xff), thread_locals_.bytes);
  here = this;
  blockIdx = {index, 0, 0};
  blockDim = {grid_.threads, 1, 1};
  gridDim = {grid_.blocks, 1, 1};
  threadIdx = {0, 0, 0};
  latest_first_ = random_.below(2) == 0;
  exited_ = 0;
  std::fill(std::begin(barriers_), std::end(barriers_), Barrier{});
  std::fill(warps_.begin(), warps_.end(), Warp{});
  ready_.clear();
  const unsigned first = random_.below(fibers_.size());
  for (unsigned i = 0; i < fibers_.size(); ++i) {
    Fiber& fiber = fibers_[(first + i) % fibers_.size()];
    fiber.exited = false;
    wake(fiber);
  }
  running_ = nullptr;
}

// Where the running fiber goes on when another comes back to it.
__attribute__((noinline)) void Multiprocessor::jump(jmp_buf& to) {
  if (_setjmp(running_->context) == 0) _longjmp(to, 1);
}

__attribute__((noinline)) void Multiprocessor::go_to(Fiber& fiber) {
  Fiber* const before = std::exchange(running_, &fiber);
  threadIdx.x = static_cast<unsigned>(&fiber - fibers_.data());
  if (before == nullptr || _setjmp(before->context) == 0) _longjmp(fiber.context, 1);
}

Fiber& Multiprocessor::next() {
  if (!latest_first_) std::swap(ready_[random_.below(ready_.size())], ready_.back());
  Fiber* fiber = ready_.back();
  ready_.pop_back();
  return *fiber;
}

// Until another fiber wakes the running one.
void Multiprocessor::wait() {
  if (ready_.empty()) {
    error_ = std::make_exception_ptr(std::runtime_error(standstill()));
    _longjmp(home_, 1);
  }
  go_to(next());
}

void Multiprocessor::maybe_yield() {
  if (ready_.empty() || random_.below(kYieldOneIn) != 0) return;
  Fiber*& other = ready_[random_.below(ready_.size())];
  go_to(*std::exchange(other, running_));
}

unsigned Multiprocessor::meet_block(Op op, bool vote, Site site) {
  Fiber& self = *running_;
  Barrier& barrier = barriers_[static_cast<int>(op)];
  barrier.votes += vote;
  if (++barrier.arrived < fibers_.size()) {
    self.op = op;
    self.site = site;
    wait();
    return static_cast<unsigned>(self.result);
  }
  self.result = std::exchange(barrier, {}).votes;
  const unsigned first = random_.below(fibers_.size());
  for (unsigned i = 0; i < fibers_.size(); ++i) {
    Fiber& fiber = fibers_[(first + i) % fibers_.size()];
    fiber.result = self.result;
    if (&fiber != &self) wake(fiber);
  }
  maybe_yield();
  return static_cast<unsigned>(self.result);
}

// What each lane of the mask gets out of an operation.
void exchange_bits(Op op, unsigned mask, Fiber* warp) {
  uint64_t votes = 0, sum = 0, least = ~uint64_t{0}, most = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const uint64_t bits = warp[lane].bits;
    votes |= uint64_t{bits != 0} << lane;
    sum += bits;
    least = std::min(least, bits);
    most = std::max(most, bits);
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Fiber& fiber = warp[lane];
    switch (op) {
      case Op::kReduceAdd: fiber.result = sum; break;
      case Op::kReduceMin: fiber.result = least; break;
      case Op::kReduceMax: fiber.result = most; break;
      case Op::kBallot:
      case Op::kAny:
      case Op::kAll: fiber.result = votes; break;
      default: fiber.result = mask >> fiber.source & 1 ? warp[fiber.source].bits : kGarbage;
    }
  }
}

uint64_t Multiprocessor::meet_warp(Op op, unsigned mask, uint64_t bits, unsigned source, Site site) {
  Fiber& self = *running_;
  self.op = op;
  self.mask = mask;
  self.bits = bits;
  self.source = source;
  self.site = site;
  const unsigned lane = threadIdx.x % kWarp;
  Fiber* const warp = &self - lane;
  unsigned& waiting = warps_[threadIdx.x / kWarp].waiting[static_cast<int>(op)];
  waiting |= 1u << lane;
  if (!all_came(warp, waiting, mask)) {
    wait();
    return self.result;
  }
  waiting &= ~mask;
  exchange_bits(op, mask, warp);
  for (unsigned other = 0; other < kWarp; ++other) {
    if (other != lane && mask >> other & 1) wake(warp[other]);
  }
  maybe_yield();
  return self.result;
}

bool Multiprocessor::all_came(const Fiber* warp, unsigned waiting, unsigned mask) const {
  if ((waiting & mask) != mask || !(mask >> (running_ - warp) & 1)) return false;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1 && warp[lane].mask != mask) return false;
  }
  return true;
}

// Which threads are where, when none of them can go on.
std::string Multiprocessor::standstill() const {
  std::map<std::string, std::vector<unsigned>> threads_at;
  for (const Fiber& fiber : fibers_) {
    std::string place = "exited";
    if (!fiber.exited) {
      place = std::string("in ") + kNames[static_cast<int>(fiber.op)] + " at " + fiber.site.file + ":" +
              std::to_string(fiber.site.line);
    }
    threads_at[place].push_back(static_cast<unsigned>(&fiber - fibers_.data()));
  }
  std::string text = "threads wait for each other forever";
  for (const auto& [place, threads] : threads_at) {
    text += "; " + std::to_string(threads.size()) + " " + place + " (the first is thread " +
            std::to_string(threads.front()) + ")";
  }
  return text;
}

uint64_t seed_of_next_launch() {
  static std::atomic<uint64_t> launches{0};
  const char* seed = std::getenv("PEARL_EMULATION_SEED");
  return Random((seed != nullptr ? std::strtoull(seed, nullptr, 10) : 0) * 1000003 + launches++).bits();
}

}  // namespace

unsigned meet_block(Op op, bool vote, Site site) { return here->meet_block(op, vote, site); }
uint64_t meet_warp(Op op, unsigned mask, uint64_t bits, unsigned source, Site site) {
  return here->meet_warp(op, mask, bits, source, site);
}
void maybe_yield() { here->maybe_yield(); }

const char* last_problem() { return problem_of_last_launch.c_str(); }

bool run(const Grid& grid, const std::function<void()>& body) {
  const uint64_t seed = seed_of_next_launch();
  Random random(seed);
  std::vector<unsigned> order(grid.blocks);
  std::iota(order.begin(), order.end(), 0u);
  for (unsigned i = grid.blocks; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);

  std::atomic<unsigned> started{0};
  std::mutex mutex;
  std::string problem;
  const auto work = [&] {
    Multiprocessor multiprocessor(grid, body);
    for (unsigned i = started++; i < grid.blocks; i = started++) {
      std::string error;
      try {
        multiprocessor.run_block(order[i], Random(seed + order[i] * uint64_t{0x632be59bd9b4e019}));
        continue;
      } catch (const std::exception& thrown) {
        error = thrown.what();
      } catch (...) {
        error = "threw something that is no std::exception";
      }
      const std::lock_guard lock(mutex);
      problem = "block " + std::to_string(order[i]) + " of " + std::to_string(grid.blocks) + ", kernel " + grid.kernel +
                ": " + error;
      started = grid.blocks;
      return;  // the fibers of this block are lost
    }
  };
  // Never on the calling thread, whose thread_local variables are not shared memory.
  std::vector<std::thread> workers;
  for (unsigned i = 0; i < (grid.blocks <= kBlocksOfOneWorker ? 1 : kWorkers); ++i) workers.emplace_back(work);
  for (std::thread& worker : workers) worker.join();
  problem_of_last_launch = problem;
  return problem.empty();
}

}  // namespace emulation
