// unite_ext._host: what Python uses of the core without loading torch. It fills the hash map of core/hash_map.h from
// the classes of every member's ids, and has the core's constants.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "byte_walk.h"
#include "core/hash_map.h"
#include "core/step_params.h"

namespace py = pybind11;

namespace {

using Int32Array = py::array_t<int32_t, py::array::c_style>;

struct MemberClasses {
  const int32_t* class_of;
  int64_t size;
};

// Places every (member, id) with a class. False if an entry needs more than kMaxProbes probes.
bool place_all(const std::vector<MemberClasses>& members, const int32_t* class_ids, int log2_capacity,
               unite::MapEntry* table) {
  const int num_members = static_cast<int>(members.size());
  const uint32_t mask = (1u << log2_capacity) - 1u;
  for (uint32_t slot = 0; slot <= mask; ++slot) {
    table[slot] = unite::MapEntry{unite::kEmptyKey, unite::kNoClass, {unite::kNoId, unite::kNoId}};
  }
  for (int member = 0; member < num_members; ++member) {
    for (int64_t id = 0; id < members[member].size; ++id) {
      const int32_t cls = members[member].class_of[id];
      if (cls == unite::kNoClass) continue;
      const int32_t key = unite::map_key(member, static_cast<int32_t>(id));
      uint32_t slot = unite::map_slot(key, log2_capacity);
      for (int probes = 1; table[slot].key != unite::kEmptyKey; slot = (slot + 1) & mask) {
        if (++probes > unite::kMaxProbes) return false;
      }
      table[slot].key = key;
      table[slot].cls = cls;
      if (num_members > unite::kMaxInlineMembers) continue;
      const int32_t* ids = class_ids + static_cast<int64_t>(cls) * num_members;
      for (int other = 0; other < num_members; ++other) {
        if (other != member) table[slot].other[unite::other_index(member, other)] = ids[other];
      }
    }
  }
  return true;
}

[[noreturn]] void refuse(const std::string& message) {
  throw std::invalid_argument(message);
}

// class_of: per member int32 [size_m], the class of each id or -1. class_ids: int32 [num_classes, members], tagged.
// table: int32 [2^log2_capacity, 4], overwritten. Returns whether every key found a place within kMaxProbes.
bool fill_table(const std::vector<Int32Array>& class_of, const Int32Array& class_ids,
                py::array_t<int32_t, py::array::c_style> table, int log2_capacity) {
  const auto num_members = static_cast<py::ssize_t>(class_of.size());
  if (num_members < 1 || num_members > unite::kMaxMembers) {
    refuse("class_of must hold 1 to " + std::to_string(unite::kMaxMembers) + " members, got " +
           std::to_string(num_members));
  }
  if (class_ids.ndim() != 2 || class_ids.shape(1) != num_members) {
    refuse("class_ids must be [num_classes, " + std::to_string(num_members) + "]");
  }
  if (log2_capacity < 1 || log2_capacity > unite::kMaxLog2Capacity || table.ndim() != 2 || table.shape(1) != 4 ||
      table.shape(0) != py::ssize_t{1} << log2_capacity) {
    refuse("table must be [2^log2_capacity, 4] with log2_capacity from 1 to " +
           std::to_string(unite::kMaxLog2Capacity));
  }
  std::vector<MemberClasses> members;
  for (const Int32Array& array : class_of) {
    if (array.ndim() != 1 || array.size() > unite::kIdMask) {
      refuse("class_of must have one dimension of fewer than 2^" + std::to_string(unite::kIdBits) + " ids per member");
    }
    members.push_back({array.data(), array.size()});
    for (py::ssize_t id = 0; id < array.size(); ++id) {
      const int32_t cls = array.data()[id];
      if (cls < unite::kNoClass || cls >= class_ids.shape(0)) {
        refuse("class_of must name rows of class_ids, got class " + std::to_string(cls) + " of id " +
               std::to_string(id));
      }
    }
  }
  auto* entries = reinterpret_cast<unite::MapEntry*>(table.mutable_data());
  const int32_t* ids = class_ids.data();
  py::gil_scoped_release release;
  return place_all(members, ids, log2_capacity, entries);
}

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "Host-side vocabulary work of unite_ext.";
  module.def("fill_table", &fill_table, py::arg("class_of"), py::arg("class_ids"), py::arg("table").noconvert(),
             py::arg("log2_capacity"), "Fill the hash map from (member, id) to class and the other members' ids.");
  bind_byte_walk(module);

  // The limits and the layout of ids, which only the core defines.
  module.attr("MAX_MEMBERS") = unite::kMaxMembers;
  module.attr("MAX_K") = unite::kMaxTopK;
  module.attr("MAX_WALK") = unite::kMaxWalk;
  module.attr("MAX_PROBES") = unite::kMaxProbes;
  module.attr("MAX_LOG2_CAPACITY") = unite::kMaxLog2Capacity;
  module.attr("ID_BITS") = unite::kIdBits;
  module.attr("ID_MASK") = unite::kIdMask;
  module.attr("FIRST_SUB_TOKEN") = unite::kFirstSubToken;
  module.attr("NO_ID") = unite::kNoId;
  module.attr("NO_CLASS") = unite::kNoClass;
  module.attr("EOS_CLASS") = unite::kEosClass;
  module.attr("BAD_INCLUDE") = unite::kBadInclude;
}
