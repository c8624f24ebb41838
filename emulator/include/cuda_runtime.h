// The part of CUDA C++ that the kernels use, for the host's compiler. It is included before every kernel source.
// `__shared__` and `__constant__` are not defined on purpose: shared memory comes from kernels/device.cuh.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <math.h>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (emulator_thread_index())
#define blockIdx (emulator_block_index())
#define blockDim (emulator_block_dim())
#define gridDim (emulator_grid_dim())

#include "vector_types.h"
#include "device_intrinsics.h"
#include "device_atomics.h"
