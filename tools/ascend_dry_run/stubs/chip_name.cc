// For LD_PRELOAD: in simulation mode MindSpore 2.8.0 leaves the chip's name empty, where a device would tell it. The
// choice of kernels depends on it, and so does this project; the two setters of the name get $ASCEND_DRY_RUN_SOC here.
#include <dlfcn.h>

#include <cstdlib>
#include <string>

namespace {
std::string chip() {
  const char* name = getenv("ASCEND_DRY_RUN_SOC");
  return name ? name : "Ascend910B1";
}

// Chip of the simulated device -> generation, as MindSpore's SetContextSocVersion derives it.
std::string generation(const std::string& name) {
  if (name.compare(0, 11, "Ascend910_9") == 0) return "ascend910_93";
  if (name.compare(0, 10, "Ascend910B") == 0 && name.size() > 10) return "ascend910b";
  if (name.compare(0, 10, "Ascend310P") == 0) return "ascend310p";
  return "ascend910";
}

using Setter = void (*)(void*, const std::string&);

void call_original(const char* symbol, void* self, const std::string& value) {
  auto original = reinterpret_cast<Setter>(dlsym(RTLD_NEXT, symbol));
  if (original == nullptr) {
    void* core = dlopen("libmindspore_core.so", RTLD_NOLOAD | RTLD_NOW);
    original = core ? reinterpret_cast<Setter>(dlsym(core, symbol)) : nullptr;
  }
  if (original != nullptr) original(self, value);
}
}  // namespace

extern "C" void _ZN9mindspore9MsContext19set_ascend_soc_nameERKSs(void* self, const std::string&) {
  call_original("_ZN9mindspore9MsContext19set_ascend_soc_nameERKSs", self, chip());
}
extern "C" void _ZN9mindspore9MsContext22set_ascend_soc_versionERKSs(void* self, const std::string&) {
  call_original("_ZN9mindspore9MsContext22set_ascend_soc_versionERKSs", self, generation(chip()));
}
