# The CUDA backend: libpolaron_cuda.so beside the program, which opens it when it looks for a device. Included by the top
# CMakeLists.txt; sets POLARON_HAS_CUDA. Compiling and linking need the toolkit only, neither a GPU nor a driver.
set(POLARON_CUDA "AUTO" CACHE STRING "build the CUDA backend: AUTO (when there is a toolkit), ON or OFF")
set_property(CACHE POLARON_CUDA PROPERTY STRINGS AUTO ON OFF)
set(POLARON_HAS_CUDA OFF)
if(POLARON_CUDA STREQUAL "OFF")
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(POLARON_CUDA STREQUAL "ON")
    message(FATAL_ERROR "POLARON_CUDA is ON, but there is no working nvcc: put it on PATH or set CMAKE_CUDA_COMPILER")
  endif()
  message(STATUS "CUDA backend: not built, there is no working nvcc")
  return()
endif()

# The device present, else the H100's and H200's architecture.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  find_program(POLARON_NVIDIA_SMI nvidia-smi)
  if(POLARON_NVIDIA_SMI)
    execute_process(COMMAND ${POLARON_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
                    OUTPUT_VARIABLE polaron_capabilities ERROR_QUIET)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]+" polaron_capabilities "${polaron_capabilities}")
    string(REPLACE "." "" polaron_capabilities "${polaron_capabilities}")
    list(REMOVE_DUPLICATES polaron_capabilities)
  endif()
  if(NOT polaron_capabilities)
    set(polaron_capabilities 90)
  endif()
  set(CMAKE_CUDA_ARCHITECTURES ${polaron_capabilities} CACHE STRING "device architectures of the CUDA backend")
endif()

enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
if(CUDAToolkit_VERSION VERSION_LESS 13.0)
  if(POLARON_CUDA STREQUAL "ON")
    message(FATAL_ERROR "The CUDA backend needs CUDA 13 or later, not ${CUDAToolkit_VERSION}")
  endif()
  message(STATUS "CUDA backend: not built, it needs CUDA 13 or later and this is ${CUDAToolkit_VERSION}")
  return()
endif()
set(POLARON_HAS_CUDA ON)
message(STATUS "CUDA backend: CUDA ${CUDAToolkit_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")

# CMake 3.25.1 does not know that nvcc has C++20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")

file(GLOB POLARON_CUDA_SOURCES CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cuda/*.cu)

# What program and library must agree about is the headers of src/backend: their hash is compared when the library is opened.
file(GLOB polaron_interface CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/backend/*.h)
set(polaron_hashes "")
foreach(header ${polaron_interface})
  file(SHA256 ${header} hash)
  string(APPEND polaron_hashes ${hash})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${header})
endforeach()
string(SHA256 POLARON_INTERFACE_HASH "${polaron_hashes}")

if(TARGET polaron_train)
  target_compile_definitions(polaron_train PRIVATE POLARON_INTERFACE_HASH="${POLARON_INTERFACE_HASH}")
endif()

add_library(polaron_cuda MODULE ${POLARON_CUDA_SOURCES})
set_target_properties(polaron_cuda PROPERTIES PREFIX lib LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}
                                              CUDA_RUNTIME_LIBRARY Static)
target_include_directories(polaron_cuda PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/src)
target_compile_definitions(polaron_cuda PRIVATE POLARON_INTERFACE_HASH="${POLARON_INTERFACE_HASH}"
                                                POLARON_CUDA_LIBRARY_DIR="${CUDAToolkit_LIBRARY_DIR}")
# Nothing but the entry is for others, and our calls of the runtime are for our copy of it.
target_link_options(polaron_cuda PRIVATE -Wl,--exclude-libs,ALL -Wl,-Bsymbolic)
# Constexpr functions of the standard library may run on the device; lineinfo costs nothing and lets profilers name lines.
target_compile_options(polaron_cuda PRIVATE --expt-relaxed-constexpr -lineinfo -Xcompiler=-Wall,-Wextra)
if(TARGET polaron)
  add_dependencies(polaron polaron_cuda) # it stands beside the program
endif()
