// What this device has: cores and memory.
#pragma once

#include <cstdint>

namespace helium::core {

int default_threads();       // the physical cores that this process may use; of unequal ones, the fast
int64_t available_memory();  // bytes that the system can give this process now; -1 where it does not tell
bool charges_mapped_files();  // whether pages of a mapped file count against that; on iOS they do not
int64_t peak_memory();       // the most that this process had at a time, in bytes; -1 likewise

}  // namespace helium::core
