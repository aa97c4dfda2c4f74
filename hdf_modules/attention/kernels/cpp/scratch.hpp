// Memory of one thread that is kept between calls: fresh pages cost more than the arithmetic.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace hdf {

class Scratch {
 public:
  // Forget what was taken. What it took several blocks to hold gets one block next time.
  void reset() {
    if (blocks_.size() > 1) {
      blocks_.clear();
      add(total_);
    }
    used_ = total_ = 0;
  }

  // ``count`` values, uninitialised, until the next reset. Throws std::bad_alloc.
  template <typename R>
  R* take(int64_t count) {
    const int64_t bytes = (count * int64_t(sizeof(R)) + kAlign - 1) / kAlign * kAlign;
    if (blocks_.empty() || used_ + bytes > blocks_.back().size) {
      add(bytes > kLeast ? bytes : kLeast);
      used_ = 0;
    }
    char* start = blocks_.back().start + used_;
    used_ += bytes;
    total_ += bytes;
    return reinterpret_cast<R*>(start);
  }

 private:
  static constexpr int64_t kAlign = 64, kLeast = 1 << 16;
  struct Block {
    std::unique_ptr<char[]> memory;
    char* start;  // aligned
    int64_t size;
  };

  void add(int64_t bytes) {
    std::unique_ptr<char[]> memory(new char[bytes + kAlign]);
    const auto address = reinterpret_cast<uintptr_t>(memory.get());
    char* start = memory.get() + (kAlign - address % kAlign);
    blocks_.push_back({std::move(memory), start, bytes});
  }

  std::vector<Block> blocks_;
  int64_t used_ = 0, total_ = 0;
};

}  // namespace hdf
