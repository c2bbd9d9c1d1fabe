// Outlive a mapped file that another process cuts: SIGBUS becomes a page of zeros, and the main thread is told.
//
// A thread that reads what is gone gets zeros and goes on; tell (PyErr_SetInterruptEx) makes Python's main thread raise
// at its next instruction, before anything that came of those zeros is shown. Any other SIGBUS ends the process as ever.

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <sys/mman.h>
#include <unistd.h>

static void (*tell)(int) = nullptr;
static int told = 0;
static uintptr_t page_bytes = 0;

static void on_bus_error(int number, siginfo_t* info, void*) {
    const uintptr_t page = reinterpret_cast<uintptr_t>(info->si_addr) & ~(page_bytes - 1);
    if (info->si_code == BUS_ADRERR
        && mmap(reinterpret_cast<void*>(page), page_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
               != MAP_FAILED)
        tell(told);
    else
        signal(number, SIG_DFL);  // the instruction runs again, and ends the process
}

// Guard from now on; signal_told is what the main thread is told. Returns whether the system lets us.
extern "C" __attribute__((visibility("default"))) int guard_maps(void (*tell_main)(int), int signal_told) {
    struct sigaction now = {};
    page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    tell = tell_main;
    told = signal_told;
    now.sa_sigaction = on_bus_error;
    now.sa_flags = SA_SIGINFO | SA_RESTART;
    sigemptyset(&now.sa_mask);
    return sigaction(SIGBUS, &now, nullptr) == 0;
}
