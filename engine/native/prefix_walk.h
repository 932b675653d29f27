// Walks over the tree of prefix_tree.h, and the guard of that tree.
//
// A walk over the tree needs nothing of Python. It runs without the interpreter's lock if there is
// enough to compare to be worth handing the lock over and getting it back; a mutex keeps other
// threads out of the tree meanwhile, for which they wait without the interpreter's lock.
#pragma once

#include "prefix_node.h"

#include <algorithm>
#include <cstring>
#include <mutex>

namespace workbench {

// Keeps other threads out. Who must wait does so without the interpreter's lock, which the thread
// inside may need to get out.
class Guard {
 public:
  explicit Guard(std::mutex& mutex) : lock_(mutex, std::try_to_lock) {
    if (!lock_.owns_lock()) {
      const py::gil_scoped_release release;
      lock_.lock();
    }
  }

 private:
  std::unique_lock<std::mutex> lock_;
};

// Where a text leads: nodes that it holds whole, then one that it shares some pages with.
struct Path {
  std::vector<Node*> nodes;
  Node* parting = nullptr;
  int64_t common_pages = 0, tokens = 0;
};

inline std::string_view text_of(const int32_t* ids, int64_t count) {
  return {reinterpret_cast<const char*>(ids), static_cast<size_t>(count) * sizeof(int32_t)};
}

inline Node* find(const Node* node, std::string_view first) {
  const auto found = node->children.find(first);
  return found == node->children.end() ? nullptr : found->second.get();
}

inline Path follow(const Node* node, const int32_t* ids, int64_t count, int64_t page_size) {
  Path path;
  while (count - path.tokens >= page_size) {
    const int32_t* rest = ids + path.tokens;
    Node* child = find(node, text_of(rest, page_size));
    if (child == nullptr) break;
    const Vector& key = *child->key;
    const auto length = static_cast<int64_t>(key.size());
    const auto shorter = std::min(length, count - path.tokens);
    const size_t bytes = static_cast<size_t>(shorter) * sizeof(int32_t);
    if (shorter < length || std::memcmp(key.data(), rest, bytes) != 0) {
      const auto same = std::mismatch(key.data(), key.data() + shorter, rest).first - key.data();
      path.parting = child;
      path.common_pages = same / page_size;
      break;
    }
    path.nodes.push_back(child);
    path.tokens += length;
    node = child;
  }
  return path;
}

}  // namespace workbench
