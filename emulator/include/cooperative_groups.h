// The grid group of a cooperative launch.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct grid_group {
    __forceinline__ void sync() const { emulator_grid_barrier(); }
};

inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
