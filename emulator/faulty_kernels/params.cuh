// The parameters that every kernel of this folder takes.
#pragma once

#include "device.cuh"

struct TestParams {
    float* input;
    float* output;
    uint32_t* counter;
    uint64_t count;
};
