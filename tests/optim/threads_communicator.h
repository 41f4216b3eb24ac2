// Processes that train together, played by threads of one: for tests of what they must agree on.
#pragma once

#include <barrier>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace polaron::test {

// What the threads share. Where they do not all bring the same amount to a transfer, over which real processes would
// wait for ever, all of them throw std::logic_error.
class ThreadsTogether {
 public:
  explicit ThreadsTogether(int threads) : brought_(static_cast<std::size_t>(threads)), barrier_(threads) {}

  template <class T>
  void sum(int rank, std::span<T> values) {
    bring(rank, std::as_writable_bytes(values));
    std::vector<T> total(values.size());
    for (const std::span<std::byte> bytes : brought_) {
      for (std::size_t i = 0; i < total.size(); ++i) total[i] += reinterpret_cast<const T*>(bytes.data())[i];
    }
    barrier_.arrive_and_wait();
    std::memcpy(values.data(), total.data(), values.size_bytes());
  }
  void copy_from(int owner, int rank, std::span<std::byte> values) {
    bring(rank, values);
    if (owner != rank) std::memcpy(values.data(), brought_[static_cast<std::size_t>(owner)].data(), values.size());
    barrier_.arrive_and_wait();
  }
  int size() const { return static_cast<int>(brought_.size()); }
  void wait() { barrier_.arrive_and_wait(); }

 private:
  void bring(int rank, std::span<std::byte> values) {
    brought_[static_cast<std::size_t>(rank)] = values;
    barrier_.arrive_and_wait();
    for (const std::span<std::byte> bytes : brought_) {
      if (bytes.size() != brought_.front().size()) throw std::logic_error("processes bring different amounts to a sum");
    }
  }

  std::vector<std::span<std::byte>> brought_;
  std::barrier<> barrier_;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(ThreadsTogether& together, int rank) : together_(together), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return together_.size(); }
  int local_size() const override { return size(); }
  int local_rank() const override { return rank_; }
  void reduce_to_owners(Stream& stream, std::span<const Segment> segments) override {
    for (const Segment& s : segments) sum_in_place(stream, static_cast<float*>(s.data), s.elements);
  }
  void gather_from_owners(Stream&, std::span<const Segment> segments) override {
    for (const Segment& s : segments) {
      together_.copy_from(s.owner, rank_, {static_cast<std::byte*>(s.data), static_cast<std::size_t>(s.bytes())});
    }
  }
  void sum_in_place(Stream&, float* values, std::int64_t n) override {
    together_.sum(rank_, std::span(values, static_cast<std::size_t>(n)));
  }
  void finish(Stream&) override {}
  void sum(Stream&, double* values, std::int64_t n) override { sum_host({values, static_cast<std::size_t>(n)}); }
  void sum_host(std::span<double> values) override { together_.sum(rank_, values); }
  void sum_local(std::span<double> values) override { sum_host(values); }
  void broadcast_host(void* data, std::int64_t bytes, int root) override {
    together_.copy_from(root, rank_, {static_cast<std::byte*>(data), static_cast<std::size_t>(bytes)});
  }
  void send_to_root(const void*, std::int64_t) override { throw std::logic_error("not played"); }
  void receive_at_root(void*, std::int64_t, int) override { throw std::logic_error("not played"); }
  void barrier() override { together_.wait(); }
  std::int64_t bytes_moved() const override { return 0; }
  [[noreturn]] void fail(const std::string& message, Exit code) override { throw Error(code, message); }

 private:
  ThreadsTogether& together_;
  int rank_;
};

}  // namespace polaron::test
