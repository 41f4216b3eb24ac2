#include "backend/arena.h"

#include "backend/backend.h"  // every header of this folder compiles on its own
