// The prefix cache of engine/core/radix_cache.py in C++: own texts, and pages proven or withdrawn.
#pragma once

#include "prefix_tree.h"

namespace workbench {

class PrefixCache : public PrefixTree {
 public:
  using PrefixTree::PrefixTree;

  Match match_own(const py::bytes& name, int64_t tokens, int64_t name_space) {
    const Guard guard(mutex_);
    Node* node = &root_of(name_space);
    py::list pages;
    ++clock_;
    const std::string_view wanted = name;
    if (!wanted.empty()) {
      int64_t left = tokens / page_size_;
      Node* child = find(node, wanted);
      while (child != nullptr && left) {
        if (child->num_pages() > left) child = split(child, left);
        left -= child->num_pages();
        pass(node, child, pages);
        child = find(node, "");
      }
    }
    ++lookups;
    lookup_tokens += tokens;
    hit_tokens += static_cast<int64_t>(PyList_GET_SIZE(pages.ptr())) * page_size_;
    return {node->self, std::move(pages), tokens};
  }

  void miss_own(int64_t tokens) {
    ++lookups;
    lookup_tokens += tokens;
  }

  int64_t peek_own(const py::bytes& name, int64_t tokens, int64_t name_space) {
    const Guard guard(mutex_);
    const auto found = roots_.find(name_space);
    const std::string_view wanted = name;
    int64_t count = 0;
    if (found != roots_.end() && !wanted.empty()) {
      for (Node* node = find(found->second.get(), wanted); node; node = find(node, "")) {
        count += node->num_pages();
      }
    }
    return std::min(count, tokens / page_size_) * page_size_;
  }

  py::object insert_own(Node& node, const py::list& pages) {
    const Guard guard(mutex_);
    const bool grows = can_grow(node);
    ++clock_;
    ++version;
    const auto count = static_cast<int64_t>(PyList_GET_SIZE(pages.ptr()));
    protected_pages += count;
    if (grows) {
      extend(node.pages, pages);
      node.last_access = clock_;
      tell(INSERT, node);
      return node.self;
    }
    std::string first;
    if (node.parent == nullptr) first = name_of(next_id_ + 1);
    Node& leaf = make(std::move(first), std::make_shared<Vector>(), pages, &node);
    leaf.last_access = clock_;
    leaf.locks = 1;
    tell(INSERT, leaf);
    tell(LOCK, leaf);
    tell(UNLOCK, node);
    return leaf.self;
  }

  void prove(Node& node) {
    const Guard guard(mutex_);
    for (Node* step = &node; step->parent && step->proven < step->num_pages(); step = step->parent) {
      step->proven = step->num_pages();
    }
  }

  void withdraw(Node& node) {
    const Guard guard(mutex_);
    Node *step = &node, *top = &node;
    while (step->parent && step->proven < step->num_pages()) {
      top = step;
      step = step->parent;
    }
    if (step == &node || top->withdrawn) return;
    if (top->proven) step = split(top, top->proven);
    const auto slot = step->children.find(top->first);
    const NodePtr kept = slot->second;
    step->children.erase(slot);
    top->first = name_of(++next_id_);
    step->children[top->first] = kept;
    top->withdrawn = true;
    ++version;
    devalue(kept);
    tell(WITHDRAW, *top);
  }

 private:
  // Let a node and what is below it be the first to be evicted.
  void devalue(const NodePtr& top) {
    std::vector<NodePtr> stack{top};
    while (!stack.empty()) {
      const NodePtr node = stack.back();
      stack.pop_back();
      node->hits = node->last_access = 0;
      if (node->queued) push(node);  // the heap does not look at what became less valuable by itself
      for (const auto& [first, child] : node->children) stack.push_back(child);
    }
  }

  static std::string name_of(int64_t number) {
    std::string name(NAME_BYTES, '\0');
    for (size_t i = 0; i < 8; ++i) name[i] = static_cast<char>(number >> (8 * i) & 0xFF);
    return name;
  }
};

}  // namespace workbench
