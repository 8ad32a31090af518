#include "common/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "common/openmp.h"

namespace pearl {
namespace {

// How long a thread waits awake: longer than from one forward of a round to the next. One that sleeps comes some 50 us
// late.
constexpr std::chrono::microseconds kAwake{1000};

struct Work {
  int64_t count, pieces;
  void (*body)(void*, int64_t, int64_t);
  void* context;
  int64_t helpers;  // at most
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
};

void take_pieces(void* data) {
  Work& work = *static_cast<Work*>(data);
  try {
    for (int64_t piece = work.next++; piece < work.pieces; piece = work.next++) {
      work.body(work.context, work.count * piece / work.pieces, work.count * (piece + 1) / work.pieces);
    }
  } catch (...) {  // the caller throws it
    if (!work.failed.exchange(true)) work.error = std::current_exception();
  }
}

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A change that threads wait for.
class Signal {
 public:
  // Returns when the condition holds, which it does after a change that `notify` follows.
  template <typename Condition>
  void await(const Condition& condition) {
    const auto end = std::chrono::steady_clock::now() + kAwake;
    do {
      for (int i = 0; i < 16; ++i, pause()) {
        if (condition()) return;
      }
    } while (std::chrono::steady_clock::now() < end);
    std::unique_lock<std::mutex> lock(mutex_);
    ++asleep_;  // before the last look at the condition, so that a notifier who changes it later sees it
    changed_.wait(lock, condition);
    --asleep_;
  }

  void notify(int64_t most) {
    const int64_t count = std::min<int64_t>(most, asleep_);
    if (count <= 0) return;
    std::lock_guard<std::mutex> lock(mutex_);  // who has counted itself is asleep when this is had
    for (int64_t i = 0; i < count; ++i) changed_.notify_one();
  }

  int64_t asleep() const { return asleep_; }

 private:
  std::atomic<int64_t> asleep_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
};

// The helpers of one calling thread. Work by work a door is opened, and they may enter until it is closed.
class Team {
 public:
  // Until there are so many helpers, or the system has no more threads.
  static void grow(const std::shared_ptr<Team>& team, int64_t helpers) {
    try {
      for (; team->helpers_ < helpers; ++team->helpers_) std::thread([team] { team->help(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  void run(Work& work) {
    work_ = &work;
    door_ = (number(door_) + 1) * kWork + kOpen;
    opened_.notify(work.helpers - (helpers_ - opened_.asleep()));
    take_pieces(&work);
    door_ -= kOpen;
    left_.await([this] { return !inside(door_); });
  }

  void end() {
    ended_ = true;
    opened_.notify(helpers_);
  }

 private:
  void help() {
    uint64_t last = 0;
    while (true) {
      opened_.await([&] { return number(door_) != last || ended_; });
      if (ended_) return;
      uint64_t door = door_;
      last = number(door);
      while (number(door) == last && door & kOpen) {
        if (!door_.compare_exchange_weak(door, door + kInside)) continue;
        if (inside(door) < work_->helpers) take_pieces(work_);
        if (!inside(door_ -= kInside)) left_.notify(1);
        break;
      }
    }
  }

  // One number says it all, so that a helper enters the work it saw or none: the number of the work, helpers inside, and
  // whether the door is open.
  static constexpr uint64_t kWork = uint64_t{1} << 32, kInside = 2, kOpen = 1;
  static uint64_t number(uint64_t door) { return door / kWork; }
  static int64_t inside(uint64_t door) { return static_cast<int64_t>(door % kWork / kInside); }

  std::atomic<uint64_t> door_{0};
  std::atomic<bool> ended_{false};
  Work* work_ = nullptr;  // while the door is open or a helper inside
  int64_t helpers_ = 0;
  Signal opened_, left_;
};

// A forked child has the memory of a team but none of its threads.
std::atomic<int64_t> forks{0};

class OwnTeam {
 public:
  ~OwnTeam() {
    if (team_ && forks_ == forks) team_->end();
  }

  Team& with(int64_t helpers) {
    if (!team_ || forks_ != forks) {
      team_ = std::make_shared<Team>();
      forks_ = forks;
    }
    Team::grow(team_, helpers);
    return *team_;
  }

 private:
  std::shared_ptr<Team> team_;
  int64_t forks_ = 0;
};

Team& own_team(int64_t helpers) {
#if defined(__unix__) || defined(__APPLE__)
  static const int watched = pthread_atfork(nullptr, nullptr, [] { ++forks; });
  (void)watched;
#endif
  thread_local OwnTeam team;
  return team.with(helpers);
}

}  // namespace

void parallel_for(int64_t count, int64_t pieces, int threads, void (*body)(void*, int64_t, int64_t), void* context) {
  Work work;
  work.count = count;
  work.pieces = std::max<int64_t>(1, std::min(pieces, count));
  work.body = body;
  work.context = context;
  work.helpers = std::min<int64_t>(threads, work.pieces) - 1;
  if (work.helpers <= 0) {
    take_pieces(&work);
  } else if (openmp().run_team && openmp().max_threads() >= threads) {
    openmp().run_team(take_pieces, &work, static_cast<unsigned>(work.helpers + 1), 0);
  } else {
    own_team(work.helpers).run(work);
  }
  if (work.error) std::rethrow_exception(work.error);
}

void release_threads() {
  if (openmp().pause_all) openmp().pause_all(kOpenMPPauseSoft);
}

}  // namespace pearl
