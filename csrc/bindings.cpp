#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = PEARL_VERSION;
  info["compiler"] = "GCC " __VERSION__;
  info["cuda"] = false;
  info["cuda_architectures"] = "";
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of pearl_kernels; call them through the doors in pearl_kernels.";
  m.def("build_info", &build_info, "What this binary was built with.");
}
