// Tickets for objects: what a caller holds is never an address, so one that is closed is told from one that is not.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "error.h"

namespace helium::core {

// `Handle` is the opaque type of the C interface. Any thread, any time.
template <class Handle, class Object>
class Handles {
   public:
    // Never destroyed: threads may still be in a call when a process ends.
    static Handles& all() {
        static auto* handles = new Handles;
        return *handles;
    }

    Handle* add(std::shared_ptr<Object> object) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const uintptr_t ticket = ++last_ * 16;  // as an address would be, for who looks at one in a debugger
        objects_.emplace(ticket, std::move(object));
        return (Handle*)ticket;
    }

    // The object, which lives as long as the caller needs it. Throws CLOSED.
    std::shared_ptr<Object> at(const Handle* handle) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = objects_.find((uintptr_t)handle);
        if (found == objects_.end()) throw Error(HELIUM_ERROR_CLOSED, "the handle is closed, or is none", {}, "an open handle of this kind");
        return found->second;
    }

    // The same, and the ticket is void; null where it was.
    std::shared_ptr<Object> remove(const Handle* handle) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = objects_.find((uintptr_t)handle);
        if (found == objects_.end()) return nullptr;
        std::shared_ptr<Object> object = std::move(found->second);
        objects_.erase(found);
        return object;
    }

   private:
    std::mutex mutex_;
    std::unordered_map<uintptr_t, std::shared_ptr<Object>> objects_;
    uintptr_t last_ = 0;
};

}  // namespace helium::core
