// A text that grows: its tokens, their keys and values, and a sampler.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "model.h"
#include "sampler.h"

namespace helium::core {

class Conversation {
   public:
    // `context_length` 0: the model's. Throws INVALID_ARGUMENT, OUT_OF_MEMORY.
    Conversation(std::shared_ptr<const Model> model, int64_t context_length, helium_overflow overflow);

    void generate(const helium_request& request, helium_result& result);
    void cancel();
    void close();  // void for all that follows; ends what runs

    std::vector<int32_t> ids();
    void truncate(size_t count);
    void save(const std::string& path);
    void restore(const std::string& path);

   private:
    class Turn;
    class Running;
    std::vector<int32_t> next_ids(const helium_request& request) const;
    void make_room(std::vector<int32_t>& ids, bool generates) const;

    std::shared_ptr<const Model> model_;
    helium_overflow overflow_;
    Past past_;
    std::vector<int32_t> ids_;  // all tokens; `past_` holds the first of them, mostly all but the last
    Sampler sampler_;
    bool sampler_begun_ = false;
    std::mutex state_;  // of the two below
    bool busy_ = false, closed_ = false;
};

}  // namespace helium::core
