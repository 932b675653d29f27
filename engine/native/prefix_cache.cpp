// The extension module: the prefix cache of prefix_cache.h, and the hashes of pages.

#include "prefix_cache.h"

#include <pybind11/stl.h>

#include <optional>

namespace {

using namespace workbench;

// A numpy array that owns a vector which it did not copy.
template <typename T>
py::array_t<T> adopt(std::vector<T>&& values) {
  auto* owned = new std::vector<T>(std::move(values));
  py::capsule owner(owned, [](void* it) { delete static_cast<std::vector<T>*>(it); });
  return py::array_t<T>(static_cast<py::ssize_t>(owned->size()), owned->data(), owner);
}

std::vector<uint64_t> hash_all(const int32_t* ids, size_t pages, size_t page_size, uint64_t hash) {
  std::vector<uint64_t> hashes(pages);
  for (size_t page = 0; page < pages; ++page) {
    for (size_t i = 0; i < page_size; ++i) {
      hash = (hash ^ static_cast<uint32_t>(ids[page * page_size + i])) * 0xFF51AFD7ED558CCDull;
      hash ^= hash >> 32;
    }
    hashes[page] = hash;
  }
  return hashes;
}

py::array_t<uint64_t> hash_pages(const Ids& ids, int64_t page_size, uint64_t parent,
                                 bool release_gil) {
  if (page_size < 1) throw py::value_error("a page has at least one token");
  const auto size = static_cast<size_t>(page_size), pages = static_cast<size_t>(ids.size()) / size;
  const int32_t* from = ids.data();
  std::vector<uint64_t> hashes;
  {
    std::optional<py::gil_scoped_release> released;
    if (release_gil) released.emplace();
    hashes = hash_all(from, pages, size, parent);
  }
  return adopt(std::move(hashes));
}

}  // namespace

PYBIND11_MODULE(prefix_cache_native, m) {
  using namespace py::literals;
  m.doc() = "The prefix cache and the hashes of pages; see engine.native.prefix_cache.";

  py::class_<Node, NodePtr>(m, "Node")
      .def_readonly("node_id", &Node::node_id)
      .def_property_readonly("first", [](const Node& n) { return py::bytes(n.first); })
      .def_property_readonly("key", [](const Node& n) {
        return py::bytes(reinterpret_cast<const char*>(n.key->data()),
                         n.key->size() * sizeof(int32_t));
      })
      .def_property_readonly("ids", [](const Node& n) { return view_of(n.key); })
      .def_property_readonly(
          "ids_address", [](const Node& n) { return reinterpret_cast<uintptr_t>(n.key->data()); })
      .def_property_readonly("pages", [](const Node& n) { return n.pages; })
      .def_property_readonly("parent", &Node::parent_object)
      .def_property_readonly("children", &Node::children_dict)
      .def_readonly("withdrawn", &Node::withdrawn)
      .def_readonly("proven", &Node::proven)
      .def_readonly("locks", &Node::locks)
      .def_readonly("hits", &Node::hits)
      .def_readonly("last_access", &Node::last_access)
      .def_readonly("queued", &Node::queued);

  py::class_<Match>(m, "Match")
      .def_readonly("node", &Match::node)
      .def_readonly("pages", &Match::pages)
      .def_readonly("lookup_tokens", &Match::lookup_tokens);

  py::class_<Inserted>(m, "Inserted")
      .def_readonly("node", &Inserted::node)
      .def_readonly("duplicate_pages", &Inserted::duplicate_pages);

  py::class_<PrefixCache>(m, "PrefixCache")
      .def(py::init<int64_t, bool, py::object, std::vector<py::object>, int64_t>(), "page_size"_a,
           "lfu"_a, "listener"_a, "ops"_a, "release_tokens"_a)
      .def_readonly("page_size", &PrefixCache::page_size_)
      .def_readonly("evictable_pages", &PrefixCache::evictable_pages)
      .def_readonly("protected_pages", &PrefixCache::protected_pages)
      .def_readonly("shared_pages", &PrefixCache::shared_pages)
      .def_readonly("version", &PrefixCache::version)
      .def_readonly("lookups", &PrefixCache::lookups)
      .def_readonly("lookup_tokens", &PrefixCache::lookup_tokens)
      .def_readonly("hit_tokens", &PrefixCache::hit_tokens)
      .def("root", &PrefixCache::root, "namespace"_a)
      .def("match", &PrefixCache::match, py::arg("ids").noconvert(), "namespace"_a = 0)
      .def("match_own", &PrefixCache::match_own, "name"_a, "tokens"_a, "namespace"_a = 0)
      .def("miss_own", &PrefixCache::miss_own, "tokens"_a)
      .def("forget", &PrefixCache::forget, "match"_a)
      .def("peek", &PrefixCache::peek, py::arg("ids").noconvert(), "namespace"_a = 0)
      .def("peek_own", &PrefixCache::peek_own, "name"_a, "tokens"_a, "namespace"_a = 0)
      .def("continues", &PrefixCache::continues, "node"_a, py::arg("ids").noconvert())
      .def("insert", &PrefixCache::insert, "node"_a, py::arg("ids").noconvert(), "pages"_a)
      .def("insert_locked", &PrefixCache::insert_locked, "node"_a, py::arg("ids").noconvert(),
           "pages"_a)
      .def("insert_own", &PrefixCache::insert_own, "node"_a, "pages"_a)
      .def("lock", &PrefixCache::lock, "node"_a)
      .def("unlock", &PrefixCache::unlock, "node"_a)
      .def("prove", &PrefixCache::prove, "node"_a)
      .def("withdraw", &PrefixCache::withdraw, "node"_a)
      .def("evict", &PrefixCache::evict, "count"_a)
      .def("clear", &PrefixCache::clear)
      .def("depth_tokens", &PrefixCache::depth_tokens, "node"_a)
      .def("nodes", &PrefixCache::nodes)
      .def("roots", &PrefixCache::roots)
      .def("queued_nodes", &PrefixCache::queued_nodes);

  m.def("hash_pages", &hash_pages, py::arg("ids").noconvert(), "page_size"_a, "parent"_a,
        "release_gil"_a);
}
