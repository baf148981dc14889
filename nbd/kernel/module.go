// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pmorjan/kmod"
	"golang.org/x/sys/unix"
)

// Parameters of the module when this package loads it: devices at the start (more
// are made on demand) and partitions per device.
const moduleParams = "nbds_max=64 max_part=16"

// ErrNoModule: this kernel has no nbd driver.
var ErrNoModule = errors.New("this kernel has no nbd module")

// ErrNotRoot: attaching needs privileges.
var ErrNotRoot = errors.New("permission denied: a kernel device needs root (CAP_SYS_ADMIN)")

// paths of the system, replaced in tests.
type paths struct {
	sys, proc, dev, modules string
}

func systemPaths() paths {
	return paths{sys: "/sys", proc: "/proc", dev: "/dev", modules: "/lib/modules"}
}

// LoadModule loads the nbd driver unless it is there.
func LoadModule() error { return systemPaths().loadModule() }

func (p paths) loadModule() error {
	for _, dir := range []string{"module/nbd", "block/nbd0"} {
		if _, err := os.Stat(filepath.Join(p.sys, dir)); err == nil {
			return nil
		}
	}
	k, err := kmod.New(kmod.SetRootDir(p.modules), kmod.SetInitFunc(initModule))
	if errors.Is(err, fs.ErrNotExist) {
		return p.noModule("it has no modules at all under " + p.modules)
	}
	if err != nil {
		return fmt.Errorf("load the nbd module: %w", err)
	}
	err = k.Load("nbd", moduleParams, 0)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("load the nbd module: %w", ErrNotRoot)
	case errors.Is(err, fs.ErrNotExist), strings.Contains(err.Error(), "not found"):
		return p.noModule("there is none under " + p.modules)
	}
	// What kmod cannot do (a compression that this kernel does not unpack, a
	// policy of the distribution) modprobe may.
	args := append([]string{"nbd"}, strings.Fields(moduleParams)...)
	if out, modprobeErr := exec.Command("modprobe", args...).CombinedOutput(); modprobeErr != nil {
		return fmt.Errorf("load the nbd module: %w; modprobe: %w: %s", err, modprobeErr,
			strings.TrimSpace(string(out)))
	}
	return nil
}

// noModule says how to get the module, or how to do without.
func (p paths) noModule(why string) error {
	var u unix.Utsname
	release := "this kernel"
	if unix.Uname(&u) == nil {
		release = "Linux " + unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Errorf("%w (%s: %s). Install the distribution's full set of modules (Ubuntu: "+
		"linux-modules-extra-$(uname -r), Fedora: kernel-modules, Debian: linux-image-amd64); or use "+
		"`sdc serve`, which needs nothing from the kernel, with nbdfuse, qemu or another NBD client",
		ErrNoModule, release, why)
}

// initModule loads a module file; a compressed one is unpacked by the kernel.
func initModule(path, params string, flags int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	switch filepath.Ext(path) {
	case ".xz", ".zst", ".gz":
		flags |= unix.MODULE_INIT_COMPRESSED_FILE
	}
	return unix.FinitModule(int(f.Fd()), strings.TrimSpace(params), flags)
}

// ParseDevice returns the number of /dev/nbdN, given as such or as nbdN.
func ParseDevice(text string) (index int, path string, err error) {
	name := strings.TrimPrefix(text, "/dev/")
	number, ok := strings.CutPrefix(name, "nbd")
	if index, err = strconv.Atoi(number); !ok || err != nil || index < 0 || index > 4095 ||
		strconv.Itoa(index) != number {
		return 0, "", fmt.Errorf("%q is not an NBD device: it must be /dev/nbd0, /dev/nbd1, …", text)
	}
	return index, "/dev/" + name, nil
}
