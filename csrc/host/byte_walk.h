// What host.cpp adds to the module from byte_walk.cpp.
#pragma once

#include <pybind11/pybind11.h>

void bind_byte_walk(pybind11::module_& module);
