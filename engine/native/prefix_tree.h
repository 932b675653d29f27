// The radix tree of engine/core/radix_tree.py in C++: the same calls, the same results, the same
// events in the same order. Its docstrings are the contract; here stands only what differs.
//
// Keys are vectors of int32 ids, looked at in place where they lie (`ids` of a node is a numpy view
// of one). Page numbers stay Python's own list entries, because the caller wants them back as such.
#pragma once

#include "prefix_walk.h"

#include <tuple>

namespace workbench {

class PrefixTree {
 public:
  PrefixTree(int64_t page_size, bool lfu, py::object listener, std::vector<py::object> ops,
              int64_t release_tokens)
      : page_size_(page_size), lfu_(lfu), listener_(std::move(listener)), ops_(std::move(ops)),
        release_tokens_(release_tokens) {
    if (page_size < 1) throw py::value_error("a page has at least one token");
    if (ops_.size() != 7) throw py::value_error("seven kinds of events are wanted");
  }

  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  ~PrefixTree() {
    heap_.clear();
    std::vector<NodePtr> all;
    for (auto& [name, root] : roots_) all.push_back(root);
    for (size_t i = 0; i < all.size(); ++i) {  // grows as it goes
      for (auto& [first, child] : all[i]->children) all.push_back(child);
    }
    for (auto& node : all) {
      node->children.clear();
      node->parent = nullptr;
      node->self = py::object();
    }
  }

  int64_t page_size_;
  int64_t evictable_pages = 0, protected_pages = 0, shared_pages = 0, version = 0;
  int64_t lookups = 0, lookup_tokens = 0, hit_tokens = 0;

  py::object root(int64_t name_space) {
    const Guard guard(mutex_);
    return root_of(name_space).self;
  }

  Match match(const Ids& ids, int64_t name_space) {
    const Guard guard(mutex_);
    Node* node = &root_of(name_space);
    py::list pages;
    const Path path = walk(node, ids.data(), ids.size());
    ++clock_;
    for (Node* child : path.nodes) pass(node, child, pages);
    if (path.parting) pass(node, split(path.parting, path.common_pages), pages);
    const int64_t hit = static_cast<int64_t>(PyList_GET_SIZE(pages.ptr())) * page_size_;
    ++lookups;
    lookup_tokens += ids.size();
    hit_tokens += hit;
    return {node->self, std::move(pages), ids.size()};
  }

  void forget(const Match& match) {
    const Guard guard(mutex_);
    --lookups;
    lookup_tokens -= match.lookup_tokens;
    hit_tokens -= static_cast<int64_t>(PyList_GET_SIZE(match.pages.ptr())) * page_size_;
    for (Node* step = match.node.cast<Node*>(); step->parent; step = step->parent) --step->hits;
  }

  int64_t peek(const Ids& ids, int64_t name_space) {
    const Guard guard(mutex_);
    const auto found = roots_.find(name_space);
    if (found == roots_.end()) return 0;
    const Path path = walk(found->second.get(), ids.data(), ids.size());
    return path.tokens + path.common_pages * page_size_;
  }

  bool continues(Node& node, const Ids& ids) {
    const Guard guard(mutex_);
    const auto length = std::min<int64_t>(ids.size(), page_size_);
    return find(&node, text_of(ids.data(), length)) != nullptr;
  }

  Inserted insert(Node& node, const Ids& ids, const py::list& pages) {
    const Guard guard(mutex_);
    return insert_below(&node, ids, pages, false);
  }

  Inserted insert_locked(Node& node, const Ids& ids, const py::list& pages) {
    const Guard guard(mutex_);
    if (can_grow(node)) {
      const int64_t count = whole_pages(ids, pages);
      ++clock_;
      ++version;
      Vector& key = node.own_key();
      key.insert(key.end(), ids.data(), ids.data() + count * page_size_);
      extend(node.pages, slice(pages, 0, count));
      node.last_access = clock_;
      protected_pages += count;
      tell(INSERT, node);
      return {node.self, 0};
    }
    Inserted result = insert_below(&node, ids, pages, true);
    tell(LOCK, *result.node.cast<Node*>());
    tell(UNLOCK, node);
    return result;
  }

  void lock(Node& node) {
    const Guard guard(mutex_);
    for (Node* step = &node; step->parent; step = step->parent) lock_one(*step);
    tell(LOCK, node);
  }

  void unlock(Node& node) {
    const Guard guard(mutex_);
    if (node.locks < 1 && node.parent) refuse_unlocked(node);
    for (Node* step = &node; step->parent; step = step->parent) {
      if (--step->locks) {
        shared_pages -= step->num_pages();
      } else {
        evictable_pages += step->num_pages();
        protected_pages -= step->num_pages();
        queue_if_evictable(*step);
      }
    }
    tell(UNLOCK, node);
  }

  py::list evict(int64_t count) {
    const Guard guard(mutex_);
    return evict_pages(count);
  }

  py::list clear() {
    const Guard guard(mutex_);
    return evict_pages(evictable_pages);
  }

  int64_t depth_tokens(const Node& node) const {
    int64_t total = 0;
    for (const Node* step = &node; step->parent; step = step->parent) total += step->num_pages();
    return total * page_size_;
  }

  py::iterator nodes() {
    const Guard guard(mutex_);
    py::list result;
    for (const auto& [name_space, root] : roots_) {
      std::vector<Node*> stack{root.get()};
      while (!stack.empty()) {
        Node* node = stack.back();
        stack.pop_back();
        if (node->parent) result.append(py::make_tuple(name_space, node->self));
        for (const auto& [first, child] : node->children) stack.push_back(child.get());
      }
    }
    return py::iter(result);
  }

  py::dict roots() {
    const Guard guard(mutex_);
    py::dict result;
    for (const auto& [name_space, root] : roots_) result[py::int_(name_space)] = root->self;
    return result;
  }

  py::list queued_nodes() {
    const Guard guard(mutex_);
    py::list result;
    for (const Entry& entry : heap_) {
      const NodePtr& node = std::get<3>(entry);
      result.append(node->self ? node->self : py::cast(node));  // an evicted one is on its own
    }
    return result;
  }

 protected:
  enum Op { TOUCH, SPLIT, INSERT, LOCK, UNLOCK, EVICT, WITHDRAW };
  using Entry = std::tuple<int64_t, int64_t, int64_t, NodePtr>;  // hits, last access, id, node

  Path walk(const Node* node, const int32_t* ids, int64_t count) const {
    if (count < release_tokens_) return follow(node, ids, count, page_size_);
    const py::gil_scoped_release release;
    return follow(node, ids, count, page_size_);
  }

  // A match goes through a child.
  void pass(Node*& node, Node* child, py::list& pages) {
    use(*child);
    ++child->hits;
    extend(pages, child->pages);
    node = child;
  }

  Inserted insert_below(Node* node, const Ids& ids, const py::list& pages, bool lock) {
    const int64_t end = whole_pages(ids, pages);
    Path path = walk(node, ids.data(), end * page_size_);
    ++clock_;
    for (Node* child : path.nodes) {
      use(*child);
      node = child;
      if (lock) lock_one(*child);
    }
    if (path.parting) {
      node = split(path.parting, path.common_pages);
      use(*node);
      if (lock) lock_one(*node);
    }
    const int64_t duplicates = path.tokens / page_size_ + path.common_pages;
    if (duplicates < end) {
      auto key = std::make_shared<Vector>(ids.data() + duplicates * page_size_,
                                          ids.data() + end * page_size_);
      std::string first(text_of(key->data(), page_size_));
      Node& leaf = make(std::move(first), std::move(key), slice(pages, duplicates, end), node);
      leaf.last_access = clock_;
      ++version;
      evictable_pages += end - duplicates;
      if (lock) lock_one(leaf);
      else queue_if_evictable(leaf);
      tell(INSERT, leaf);
      node = &leaf;
    }
    return {node->self, duplicates};
  }

  Node* split(Node* node, int64_t count) {
    const int64_t cut = node->key->empty() ? 0 : count * page_size_;  // own texts have no ids
    Node* parent = node->parent;
    if (parent == nullptr) throw py::value_error("a root cannot be split");
    const auto slot = parent->children.find(node->first);
    const NodePtr kept = slot->second;
    auto upper_key = std::make_shared<Vector>(node->key->begin(), node->key->begin() + cut);
    auto lower_key = std::make_shared<Vector>(node->key->begin() + cut, node->key->end());
    parent->children.erase(slot);
    Node& upper = make(node->first, std::move(upper_key), slice(node->pages, 0, count), parent);
    upper.locks = node->locks;
    upper.hits = node->hits;
    upper.last_access = node->last_access;
    upper.proven = std::min(node->proven, count);
    node->proven = std::max<int64_t>(0, node->proven - count);
    upper.withdrawn = node->withdrawn;
    node->withdrawn = false;
    node->key = std::move(lower_key);
    node->pages = slice(node->pages, count, node->num_pages());
    node->parent = &upper;
    const auto length = std::min<int64_t>(static_cast<int64_t>(node->key->size()), page_size_);
    node->first = std::string(text_of(node->key->data(), length));
    upper.children.emplace(node->first, kept);
    tell(SPLIT, upper);
    return &upper;
  }

  int64_t whole_pages(const Ids& ids, const py::list& pages) const {
    const int64_t count = ids.size() / page_size_;
    const auto offered = static_cast<int64_t>(PyList_GET_SIZE(pages.ptr()));
    if (offered < count) {
      throw py::value_error(std::to_string(count) + " full pages of ids but only " +
                            std::to_string(offered) + " pages");
    }
    return count;
  }

  bool can_grow(const Node& node) const {
    if (node.parent == nullptr) return false;
    if (node.locks < 1) refuse_unlocked(node);
    return node.locks == 1 && node.children.empty() && !(lfu_ && node.hits);
  }

  [[noreturn]] static void refuse_unlocked(const Node& node) {
    throw py::value_error("node " + std::to_string(node.node_id) + " is not locked");
  }

  void use(Node& node) {
    node.last_access = clock_;
    tell(TOUCH, node);
  }

  void lock_one(Node& node) {
    if (node.locks) {
      shared_pages += node.num_pages();
    } else {
      evictable_pages -= node.num_pages();
      protected_pages += node.num_pages();
    }
    ++node.locks;
  }

  py::list evict_pages(int64_t count) {
    py::list freed;
    int64_t missing = count;
    while (missing > 0 && !heap_.empty()) {
      const auto [hits, last_access, id, node] = heap_.front();
      if (node->locks || !node->children.empty() || node->parent == nullptr) {
        pop();
        node->queued = false;
      } else if (last_access != node->last_access || (lfu_ && hits != node->hits)) {
        pop();
        push(node);
      } else if (missing < node->num_pages()) {
        trim(*node, missing, freed);
        missing = 0;
      } else {
        pop();
        missing -= node->num_pages();
        remove(*node, freed);
      }
    }
    if (PyList_GET_SIZE(freed.ptr())) ++version;
    return freed;
  }

  void remove(Node& leaf, py::list& freed) {
    Node* parent = leaf.parent;
    const auto slot = parent->children.find(leaf.first);
    const NodePtr kept = slot->second;
    parent->children.erase(slot);
    leaf.queued = false;
    evictable_pages -= leaf.num_pages();
    tell(EVICT, leaf);
    leaf.parent = nullptr;
    if (parent->children.empty()) queue_if_evictable(*parent);
    extend(freed, leaf.pages);
    leaf.self = py::object();
  }

  void trim(Node& leaf, int64_t count, py::list& freed) {
    const int64_t kept = leaf.num_pages() - count;
    extend(freed, slice(leaf.pages, kept, leaf.num_pages()));
    leaf.pages = slice(leaf.pages, 0, kept);
    if (!leaf.key->empty()) leaf.own_key().resize(static_cast<size_t>(kept * page_size_));
    leaf.proven = std::min(leaf.proven, kept);
    evictable_pages -= count;
    tell(EVICT, leaf);
  }

  void queue_if_evictable(Node& node) {
    if (node.queued || node.parent == nullptr || node.locks || !node.children.empty()) return;
    node.queued = true;
    push(node.parent->children.find(node.first)->second);
  }

  void push(const NodePtr& node) {
    heap_.emplace_back(lfu_ ? node->hits : 0, node->last_access, node->node_id, node);
    std::push_heap(heap_.begin(), heap_.end(), later);
  }

  void pop() {
    std::pop_heap(heap_.begin(), heap_.end(), later);
    heap_.pop_back();
  }

  static bool later(const Entry& a, const Entry& b) {
    return std::tie(std::get<0>(a), std::get<1>(a), std::get<2>(a)) >
           std::tie(std::get<0>(b), std::get<1>(b), std::get<2>(b));
  }

  Node& root_of(int64_t name_space) {
    NodePtr& root = roots_[name_space];
    if (root == nullptr) root = make_node("", std::make_shared<Vector>(), py::list(), nullptr);
    return *root;
  }

  Node& make(std::string first, std::shared_ptr<Vector> key, py::list pages, Node* parent) {
    NodePtr node = make_node(std::move(first), std::move(key), std::move(pages), parent);
    parent->children[node->first] = node;
    return *node;
  }

  NodePtr make_node(std::string first, std::shared_ptr<Vector> key, py::list pages, Node* parent) {
    auto node = std::make_shared<Node>();
    node->node_id = ++next_id_;
    node->first = std::move(first);
    node->key = std::move(key);
    node->pages = std::move(pages);
    node->parent = parent;
    node->self = py::cast(node);
    return node;
  }

  void tell(Op op, const Node& node) {
    if (!listener_.is_none()) listener_(ops_[op], node.self);
  }

  bool lfu_;
  py::object listener_;
  std::vector<py::object> ops_;
  int64_t release_tokens_;
  std::mutex mutex_;
  std::unordered_map<int64_t, NodePtr> roots_;
  std::vector<Entry> heap_;
  int64_t clock_ = 0, next_id_ = 0;
};

}  // namespace workbench
