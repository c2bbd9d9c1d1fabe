// A pool of threads that share out numbered tasks. It knows nothing of weights; who takes a task changes no result.
#pragma once
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class Pool {
  public:
    // Run task(0 .. n-1) on this thread and up to threads - 1 others; returns when all are done. Nobody waits for a
    // thread that has not woken up yet: on a busy machine that takes longer than the work.
    void run(long n, int threads, const std::function<void(long)>& task) {
        if (threads <= 1 || n <= 1) {  // a task may run others so
            for (long i = 0; i < n; i++) task(i);
            return;
        }
        std::lock_guard<std::mutex> one_job(job_);
        if (owner_ != getpid()) forget();  // a forked child has no threads of its parent's pool
        while (static_cast<int>(crew_.size()) < threads - 1) hire();
        {
            std::lock_guard<std::mutex> hold(lock_);
            task_ = &task, total_ = n, next_ = 0, wanted_ = threads - 1;
            round_++;
        }
        wake_.notify_all();
        work(task, n);
        std::unique_lock<std::mutex> hold(lock_);
        task_ = nullptr;  // who comes now is late
        if (at_work_.load() == 0) return;
        hold.unlock();
        for (int spin = 0; at_work_.load() && spin < SPINS; spin++) pause();
        hold.lock();
        done_.wait(hold, [&] { return at_work_.load() == 0; });
    }

  private:
    static constexpr int SPINS = 2000;   // 40 us; then others come first, while it waits for the next of a token's
    static constexpr int YIELDS = 400;  // products (40 to 150 us later): to be woken up costs as much as a small one

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    void work(const std::function<void(long)>& task, long n) {
        for (long i; (i = next_.fetch_add(1)) < n;) task(i);
    }
    void hire() {
        const int id = static_cast<int>(crew_.size());
        const long seen = round_.load();
        crew_.emplace_back([this, id, seen] { serve(id, seen); });
        crew_.back().detach();  // they sleep until the process ends
    }
    void serve(int id, long seen) {
        for (;;) {
            for (int spin = 0; round_.load() == seen && spin < SPINS + YIELDS; spin++)
                spin < SPINS ? pause() : static_cast<void>(sched_yield());
            std::unique_lock<std::mutex> hold(lock_);
            wake_.wait(hold, [&] { return round_.load() != seen; });
            seen = round_.load();
            if (task_ == nullptr || id >= wanted_) continue;
            const std::function<void(long)>& task = *task_;
            const long n = total_;
            at_work_++;
            hold.unlock();
            work(task, n);
            hold.lock();
            if (--at_work_ == 0) done_.notify_one();
        }
    }
    void forget() {
        new (&crew_) std::vector<std::thread>();
        new (&lock_) std::mutex();
        new (&wake_) std::condition_variable();
        new (&done_) std::condition_variable();
        at_work_ = 0, owner_ = getpid();
    }

    std::mutex job_, lock_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> crew_;
    const std::function<void(long)>* task_ = nullptr;  // while there is work to take
    long total_ = 0;
    int wanted_ = 0;
    std::atomic<long> next_{0}, round_{0};
    std::atomic<int> at_work_{0};
    pid_t owner_ = getpid();
};

// Never destroyed: its threads outlive static destructors.
inline Pool& pool() {
    static Pool* shared = new Pool;
    return *shared;
}
