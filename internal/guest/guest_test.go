// SPDX-License-Identifier: Apache-2.0

//go:build guest

package guest

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// story is a guest to boot and a script to run in it.
type story struct {
	script string // below scripts/
	kernel string
	memory string
	cpus   string
	limit  string   // seconds; the guest is ended after it
	disks  []string // sizes of raw disks
}

// run boots the guest and fails the test unless the script ends with 0. The
// story's own words are the test's log.
func run(t *testing.T, s story) {
	t.Helper()
	// Guests mostly wait for one CPU: two at a time (-parallel 2) halve the time.
	t.Parallel()
	root := projectRoot(t)
	args := []string{"--kernel", s.kernel, "-m", s.memory, "-t", s.limit, "-e", "BRAID_SOAK",
		"-e", "BRAID_ENGINE", "-e", "BRAID_GONBD"}
	if s.cpus != "" {
		args = append(args, "-s", s.cpus)
	}
	for _, size := range s.disks {
		args = append(args, "-d", size)
	}
	command := strings.Fields(s.script)
	args = append(args, "--", filepath.Join(root, "scripts", command[0]))
	cmd := exec.Command(filepath.Join(root, "scripts", "guest"), append(args, command[1:]...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "BRAID_GONBD="+goNBD(root))
	// The guest ends with this test, also when go test is killed at its time limit.
	// The signal is sent at the end of the *thread* that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	// The lines appear as they come: those of a guest that hangs say where.
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("make a pipe: %v", err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", cmd.Path, err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		t.Log(strings.TrimRight(lines.Text(), "\r"))
	}
	if err := lines.Err(); err != nil {
		t.Errorf("read the output: %v", err)
		cmd.Process.Kill()
	}
	err = cmd.Wait()
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(cmd.Args, " "), err)
	}
}

func projectRoot(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatalf("find the project's root: %v", err)
	}
	return root
}

// goNBD is where buildGoNBD puts the program gonbd: a place that the guest sees.
func goNBD(root string) string { return filepath.Join(root, "dist", "guest", "gonbd") }

func buildGoNBD(t *testing.T) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", goNBD(projectRoot(t)), "./gonbd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build gonbd: %v\n%s", err, out)
	}
}

// limit is the time a story gets, in seconds: CI form and soak form. It ends a story
// that hangs: a slow machine with one CPU needs a quarter of it.
func limit(short, soak string) string {
	if os.Getenv("BRAID_SOAK") != "" {
		return soak
	}
	return short
}

// Goal: the story that `make demo` tells ends well in a guest kernel.
func TestDemo(t *testing.T) {
	run(t, story{script: "demo --inside --kernel host --short", kernel: "uml", memory: "2G",
		limit: limit("1200", "1200")})
}

// Goal: ext4 on an attached volume, on a kernel with several CPUs: four sockets,
// large requests, /dev/braid, refusal to detach while mounted, attach again. Then
// an outage longer than the kernel's time-out is no I/O error, and detach ends
// with dead servers.
func TestSeveralCPUs(t *testing.T) {
	run(t, story{script: "guest-tests/several.sh ext4 outage", kernel: "qemu", memory: "2G",
		cpus: "2", limit: limit("1200", "3600")})
}

// Goal: XFS, fstrim that gives space back, online growth; four volumes at once,
// partitions; a dead client daemon is replaced under load; go-nbd's client and
// nbd-client use an export; what was fsynced survives the death of any one process.
func TestFileSystems(t *testing.T) {
	buildGoNBD(t)
	run(t, story{script: "guest-tests/several.sh xfs many daemon clients crash", kernel: "uml", memory: "2G",
		limit: limit("1200", "3600")})
}

// Goal: PostgreSQL on a volume keeps its invariant, sees no error while a data server
// and the client's daemon die, and has lost no acknowledged transaction when every
// process has died at once.
func TestPostgres(t *testing.T) {
	run(t, story{script: "guest-tests/postgres.sh", kernel: "uml", memory: "3G",
		limit: limit("1200", "3600")})
}

// Goal: no deadlock with memory reclaim.
func TestPressure(t *testing.T) {
	run(t, story{script: "guest-tests/pressure.sh", kernel: "uml", memory: "700M",
		limit: limit("1200", "3600"), disks: []string{"1G", "1G", "1G"}})
}
