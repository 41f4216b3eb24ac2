// The processes that run a test program together: one started by itself, or all that mpirun started. A test is run by
// every one of them at the same time, so it must make the same collective calls whatever it finds: EXPECT, not ASSERT.
#pragma once

#include "comm/communicator.h"

namespace polaron::test {

// Made by main() for the life of the program.
Communicator& processes();

}  // namespace polaron::test
