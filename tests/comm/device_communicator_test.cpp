// How processes with devices of their own come together: by the backend's library where all can use it, else staged.
// The library of these tests does nothing but remember what it was asked for.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "hidden_device.h"
#include "place.h"

namespace polaron::test {
namespace {

struct Asked {
  int opened = 0, drawn = 0, made = 0, living = 0;
  std::vector<std::string> transfers;
  CollectivesId id{};
  bool refuse_open = false, refuse_id = false, refuse_make = false;
  std::string failure;
};
Asked& asked() {
  static Asked instance;
  return instance;
}

class Remembering final : public Collectives {
 public:
  Remembering() { ++asked().living; }
  ~Remembering() override { --asked().living; }
  Remembering(const Remembering&) = delete;
  Remembering& operator=(const Remembering&) = delete;
  void reduce_to_owners(Stream&, std::span<const Segment>) override { asked().transfers.emplace_back("reduce"); }
  void gather_from_owners(Stream&, std::span<const Segment>) override { asked().transfers.emplace_back("gather"); }
  void sum_in_place(Stream&, float*, std::int64_t) override { asked().transfers.emplace_back("sum_in_place"); }
  void finish(Stream&) override { asked().transfers.emplace_back("finish"); }
  void sum(Stream&, double*, std::int64_t) override { asked().transfers.emplace_back("sum"); }
  std::string failure() override { return asked().failure; }
};

CollectivesLibrary library() {
  CollectivesLibrary made;
  made.open = [] {
    ++asked().opened;
    if (asked().refuse_open) throw Error(Exit::device, "it is not installed");
  };
  made.draw_id = [] {
    ++asked().drawn;
    if (asked().refuse_id) throw Error(Exit::device, "it draws nothing");
    CollectivesId id{};
    id.fill('x');
    return id;
  };
  made.make = [](Device&, const CollectivesId& id, int rank, int size) -> Collectives* {
    ++asked().made;
    EXPECT_EQ(rank, processes().rank());
    EXPECT_EQ(size, processes().size());
    asked().id = id;
    if (asked().refuse_make) throw Error(Exit::device, "it refuses");
    return new Remembering;
  };
  return made;
}

class DeviceCommunicator : public testing::Test {
 protected:
  DeviceCommunicator() { asked() = Asked(); }
  bool last() const { return all_.rank() == all_.size() - 1; }
  bool alone() const { return all_.size() == 1; }
  static HiddenDevice own_device() { return HiddenDevice("of process " + std::to_string(processes().rank())); }

  // It sums: 1 + 2 + ... in the memory of a hidden device.
  void expect_that_it_works(Communicator& communicator, HiddenDevice& device) const {
    const DeviceBuffer memory(device, sizeof(float));
    HiddenStream stream;
    const auto value = static_cast<float>(all_.rank() + 1);
    std::memcpy(device.reveal(memory.data(), 4), &value, 4);
    communicator.sum_in_place(stream, memory.as<float>(), 1);
    communicator.finish(stream);
    stream.synchronize();
    float sum = 0;
    std::memcpy(&sum, device.reveal(memory.data(), 4), 4);
    EXPECT_EQ(sum, static_cast<float>(all_.size() * (all_.size() + 1) / 2));
  }

  Communicator& all_ = processes();
  CollectivesLibrary library_ = library();
};

TEST_F(DeviceCommunicator, is_not_needed_on_the_cpu) {
  HiddenDevice device("", "cpu");
  EXPECT_EQ(make_device_communicator(all_, device, &library_), nullptr);
  EXPECT_EQ(asked().opened, 0);
}

TEST_F(DeviceCommunicator, of_one_process_leaves_the_devices_memory_alone) {
  if (!alone()) return;
  HiddenDevice device = own_device();
  const auto communicator = make_device_communicator(all_, device, &library_);
  EXPECT_EQ(communicator->size(), 1);
  EXPECT_EQ(asked().opened, 0);
  expect_that_it_works(*communicator, device);
}

TEST_F(DeviceCommunicator, gives_device_memory_to_the_library_and_counts_what_moves) {
  if (alone()) return;
  HiddenDevice device = own_device();
  {
    const auto communicator = make_device_communicator(all_, device, &library_);
    EXPECT_EQ(asked().drawn, all_.rank() == 0 ? 1 : 0);
    EXPECT_EQ(asked().id[127], 'x');
    EXPECT_EQ(communicator->rank(), all_.rank());
    EXPECT_EQ(communicator->local_rank(), all_.local_rank());
    HiddenStream stream;
    const std::vector<Segment> segments = {{nullptr, DType::f32, 100, 0}, {nullptr, DType::bf16, 10, all_.size() - 1}};
    communicator->reduce_to_owners(stream, segments);
    communicator->gather_from_owners(stream, segments);
    communicator->sum_in_place(stream, nullptr, 5);
    communicator->finish(stream);
    communicator->sum(stream, nullptr, 2);
    EXPECT_EQ(asked().transfers, (std::vector<std::string>{"reduce", "gather", "sum_in_place", "finish", "sum"}));
    const int first = all_.rank() == 0 ? 0 : 1, end = last() ? 0 : 1;
    EXPECT_EQ(communicator->bytes_moved(), 2 * (400 * first + 20 * end) + 40 * first);
    double ranks = all_.rank();
    communicator->sum_host(std::span(&ranks, 1));
    EXPECT_EQ(ranks, all_.size() * (all_.size() - 1) / 2);
  }
  EXPECT_EQ(asked().living, 0);
}

TEST_F(DeviceCommunicator, is_staged_on_all_processes_where_one_cannot_use_the_library) {
  if (alone()) return;
  using Refusal = bool Asked::*;
  for (const Refusal refusal : {&Asked::refuse_open, &Asked::refuse_id, &Asked::refuse_make}) {
    asked() = Asked();
    // Process 0 alone draws the number.
    asked().*refusal = refusal == &Asked::refuse_id ? all_.rank() == 0 : last();
    HiddenDevice device = own_device();
    const auto communicator = make_device_communicator(all_, device, &library_);
    EXPECT_EQ(asked().living, 0);
    expect_that_it_works(*communicator, device);
    EXPECT_TRUE(asked().transfers.empty());
  }
}

TEST_F(DeviceCommunicator, is_staged_without_asking_the_library_where_two_processes_share_a_device) {
  if (alone()) return;
  HiddenDevice device(last() ? "of process 0" : "of process " + std::to_string(all_.rank()));
  const auto communicator = make_device_communicator(all_, device, &library_);
  EXPECT_EQ(asked().opened, 0);
  expect_that_it_works(*communicator, device);
}

TEST_F(DeviceCommunicator, of_a_cpu_and_a_device_is_refused_on_all_processes) {
  if (alone()) return;
  HiddenDevice device("", last() ? "hidden" : "cpu");
  std::string message;
  try {
    make_device_communicator(all_, device, &library_);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::device);
    message = error.what();
  }
  EXPECT_NE(message.find(std::to_string(all_.size() - 1) + " of " + std::to_string(all_.size()) + " processes"),
            std::string::npos)
      << message;
}

// Random numbers, whose sums depend on the order.
TEST_F(DeviceCommunicator, stages_sums_of_the_same_bits_as_sums_on_the_host) {
  std::vector<std::vector<float>> sums;
  for (const Place place : {Place::host, Place::staged}) {
    const Setting setting(place);
    Values<float> values(setting, 600000);  // more than two pieces
    for (std::size_t i = 0; i < values.host.size(); ++i) {
      const auto hash = (static_cast<std::uint32_t>(i) + 977U * static_cast<std::uint32_t>(all_.rank())) * 2654435761U;
      values.host[i] = static_cast<float>(hash) - 0x1p31F;
    }
    values.send();
    TestStream stream(setting);
    const std::vector<Segment> segments = {{values.data(), DType::f32, 599999, all_.size() - 1}};
    setting.all().reduce_to_owners(stream, segments);
    setting.all().finish(stream);
    values.fetch(stream);
    sums.push_back(values.host);
  }
  if (last()) {
    EXPECT_TRUE(sums[0] == sums[1]);
  }
}

// Run by a test of its own, which looks for the message and the end of all processes: they would wait for ever.
TEST_F(DeviceCommunicator, DISABLED_a_transfer_that_fails_ends_all_processes) {
  HiddenDevice device = own_device();
  if (last()) asked().failure = "the wire is cut";
  const auto communicator = make_device_communicator(all_, device, &library_);
  std::this_thread::sleep_for(std::chrono::minutes(2));
}

}  // namespace
}  // namespace polaron::test
