// A node of the prefix cache, and what its calls return; see prefix_tree.h.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace workbench {

namespace py = pybind11;

using Ids = py::array_t<int32_t, py::array::c_style>;
using Vector = std::vector<int32_t>;

// A read-only numpy view of a vector, which it keeps alive.
inline py::array_t<int32_t> view_of(const std::shared_ptr<Vector>& shared) {
  auto* held = new std::shared_ptr<Vector>(shared);
  py::capsule owner(held, [](void* it) { delete static_cast<std::shared_ptr<Vector>*>(it); });
  py::array_t<int32_t> view(static_cast<py::ssize_t>(shared->size()), shared->data(), owner);
  view.attr("flags").attr("writeable") = false;
  return view;
}

struct Hash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};

// Of a name, which no page of ids equals: it is no multiple of four.
constexpr size_t NAME_BYTES = 9;

struct Node;
using NodePtr = std::shared_ptr<Node>;

struct Node {
  int64_t node_id = 0;
  std::string first;
  std::shared_ptr<Vector> key = std::make_shared<Vector>();
  py::list pages;
  Node* parent = nullptr;
  std::unordered_map<std::string, NodePtr, Hash, std::equal_to<>> children;
  int64_t locks = 0, hits = 0, last_access = 0, proven = 0;
  bool queued = false, withdrawn = false;
  // Its Python object lives as long as the node is in the tree, so that it is always the same one.
  py::object self;

  int64_t num_pages() const { return static_cast<int64_t>(PyList_GET_SIZE(pages.ptr())); }

  // The key, for writing: a copy if somebody has a view of it.
  Vector& own_key() {
    if (key.use_count() > 1) key = std::make_shared<Vector>(*key);
    return *key;
  }

  py::object parent_object() const { return parent ? parent->self : py::none(); }

  py::dict children_dict() const {
    py::dict result;
    for (const auto& [name, child] : children) result[py::bytes(name)] = child->self;
    return result;
  }
};

struct Match {
  py::object node;
  py::list pages;
  int64_t lookup_tokens;
};

struct Inserted {
  py::object node;
  int64_t duplicate_pages;
};

inline void extend(py::list& list, const py::list& more) {
  const auto end = PyList_GET_SIZE(list.ptr());
  if (PyList_SetSlice(list.ptr(), end, end, more.ptr()) != 0) throw py::error_already_set();
}

inline py::list slice(const py::list& list, int64_t begin, int64_t end) {
  PyObject* part = PyList_GetSlice(list.ptr(), begin, end);
  if (part == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::list>(part);
}

}  // namespace workbench
