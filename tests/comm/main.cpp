// Runs the tests on the processes of one communicator. Process 0 reports as usual, the others only what fails.
#include <gtest/gtest.h>

#include <cstdio>
#include <exception>
#include <memory>

#include "processes.h"

namespace polaron::test {
namespace {

std::unique_ptr<Communicator>& communicator() {
  static std::unique_ptr<Communicator> only;
  return only;
}

class FailuresOnly final : public testing::EmptyTestEventListener {
 public:
  explicit FailuresOnly(int rank) : rank_(rank) {}
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    std::fprintf(stderr, "process %d, %s:%d: %s\n%s\n", rank_, result.file_name() != nullptr ? result.file_name() : "",
                 result.line_number(), test != nullptr ? test->name() : "outside of a test", result.message());
  }

 private:
  int rank_;
};

}  // namespace

Communicator& processes() { return *communicator(); }

int run(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  communicator() = make_communicator();
  const int rank = processes().rank();
  if (rank != 0) {
    testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailuresOnly(rank));
  }
  const int failed = RUN_ALL_TESTS();
  communicator().reset();  // before main returns: MPI wants to be ended, not torn down by destructors of statics
  return failed;
}

}  // namespace polaron::test

int main(int argc, char** argv) {
  try {
    return polaron::test::run(argc, argv);
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
  }
}
