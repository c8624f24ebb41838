// What every planted kernel takes.
#pragma once

#include "device.cuh"

struct PlantedParams {
    float* input;
    float* output;
    uint32_t* counter;
    uint64_t count;
};
