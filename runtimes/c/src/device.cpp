#include "device.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <set>
#include <string>
#include <thread>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#define PSAPI_VERSION 2
#include <psapi.h>
#elif defined(__APPLE__)
#include <TargetConditionals.h>
#include <mach/mach.h>
#include <sys/resource.h>
#include <sys/sysctl.h>
#if TARGET_OS_IPHONE
#include <os/proc.h>
#endif
#else
#include <sched.h>
#include <sys/resource.h>
#endif

namespace helium::core {

bool charges_mapped_files() {
#if defined(__APPLE__) && TARGET_OS_IPHONE
    return false;
#else
    return true;
#endif
}

#if defined(_WIN32)

int default_threads() {
    DWORD bytes = 0;
    GetLogicalProcessorInformation(nullptr, &bytes);
    std::string memory(bytes, '\0');
    auto* entries = (SYSTEM_LOGICAL_PROCESSOR_INFORMATION*)memory.data();
    int cores = 0;
    if (GetLogicalProcessorInformation(entries, &bytes))
        for (size_t i = 0; i < bytes / sizeof *entries; ++i) cores += entries[i].Relationship == RelationProcessorCore;
    return std::max(1, cores);
}

int64_t available_memory() {
    MEMORYSTATUSEX status{};
    status.dwLength = sizeof status;
    return GlobalMemoryStatusEx(&status) ? (int64_t)status.ullAvailPhys : -1;
}

int64_t peak_memory() {
    PROCESS_MEMORY_COUNTERS counters{};
    return GetProcessMemoryInfo(GetCurrentProcess(), &counters, sizeof counters) ? (int64_t)counters.PeakWorkingSetSize : -1;
}

#elif defined(__APPLE__)

int default_threads() {
    int cores = 0;
    size_t size = sizeof cores;
    // Of unequal cores those of level 0 are the fast ones.
    if (sysctlbyname("hw.perflevel0.physicalcpu", &cores, &size, nullptr, 0) == 0 && cores > 0) return cores;
    size = sizeof cores;
    if (sysctlbyname("hw.physicalcpu", &cores, &size, nullptr, 0) == 0 && cores > 0) return cores;
    return 1;
}

int64_t available_memory() {
#if TARGET_OS_IPHONE
    return (int64_t)os_proc_available_memory();
#else
    vm_statistics64_data_t counts;
    mach_msg_type_number_t fields = HOST_VM_INFO64_COUNT;
    if (host_statistics64(mach_host_self(), HOST_VM_INFO64, (host_info64_t)&counts, &fields) != KERN_SUCCESS) return -1;
    return (int64_t)(counts.free_count + counts.inactive_count + counts.purgeable_count) * (int64_t)vm_kernel_page_size;
#endif
}

int64_t peak_memory() {
    rusage usage{};
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (int64_t)usage.ru_maxrss : -1;
}

#else

namespace {

std::string first_line(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

// The value of a line "name:  123 kB", in bytes; -1: there is none.
int64_t kilobytes(const char* path, const std::string& name) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);)
        if (line.compare(0, name.size() + 1, name + ":") == 0) return std::strtoll(line.c_str() + name.size() + 1, nullptr, 10) * 1024;
    return -1;
}

// A number alone in a file; -1: no file, or another text, as "max".
int64_t number_in(const std::string& path) {
    const std::string line = first_line(path);
    return !line.empty() && line[0] >= '0' && line[0] <= '9' ? std::strtoll(line.c_str(), nullptr, 10) : -1;
}

}  // namespace

int default_threads() {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return (int)std::max(1u, std::thread::hardware_concurrency());
    std::set<std::string> all, fast;
    int64_t fastest = -1;
    for (int pass = 0; pass < 2; ++pass)
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(cpu, &allowed)) continue;
            const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu);
            const int64_t capacity = number_in(folder + "/cpu_capacity");  // of cores of several kinds, relative
            if (pass == 0) {
                fastest = std::max(fastest, capacity);
                continue;
            }
            std::string siblings = first_line(folder + "/topology/thread_siblings_list");
            if (siblings.empty()) siblings = std::to_string(cpu);
            all.insert(siblings);
            if (2 * capacity >= fastest) fast.insert(siblings);
        }
    auto cores = (int64_t)(fast.empty() ? all : fast).size();
    // What the control group grants: "200000 100000" are two processors.
    if (const std::string line = first_line("/sys/fs/cgroup/cpu.max"); !line.empty() && line[0] != 'm') {
        char* rest = nullptr;
        const int64_t quota = std::strtoll(line.c_str(), &rest, 10), period = std::strtoll(rest, nullptr, 10);
        if (period > 0) cores = std::min(cores, quota / period);
    }
    return (int)std::max<int64_t>(1, cores);
}

int64_t available_memory() {
    int64_t available = kilobytes("/proc/meminfo", "MemAvailable");
    const int64_t most = number_in("/sys/fs/cgroup/memory.max"), used = number_in("/sys/fs/cgroup/memory.current");
    if (most >= 0 && used >= 0) {
        const int64_t granted = std::max<int64_t>(0, most - used);
        available = available < 0 ? granted : std::min(available, granted);
    }
    return available;
}

int64_t peak_memory() {
    rusage usage{};
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (int64_t)usage.ru_maxrss * 1024 : -1;
}

#endif

}  // namespace helium::core
