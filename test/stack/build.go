package stack

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
)

// root returns the top of the repository, which this file is in.
func root() string {
	_, file, _, _ := runtime.Caller(0)
	if filepath.IsAbs(file) {
		return filepath.Dir(filepath.Dir(filepath.Dir(file)))
	}
	// Built with -trimpath: then tests run in their package's directory, two below the top.
	wd, _ := os.Getwd()
	return filepath.Dir(filepath.Dir(wd))
}

// binaries are the programs of a stack.
type binaries struct{ control, node, engine string }

// built builds the programs, once per test run, with crash points in them. The directory NEXTSTACK_TEST_BIN keeps them from
// one run to the next.
var built = sync.OnceValues(func() (binaries, error) {
	dir := os.Getenv("NEXTSTACK_TEST_BIN")
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "nextstack-bin-"); err != nil {
			return binaries{}, err
		}
		temporary = dir
	}
	b := binaries{control: filepath.Join(dir, "nextstack"), node: filepath.Join(dir, "gnext"), engine: filepath.Join(dir, "engine")}
	for _, p := range []struct{ out, pkg, cgo string }{
		{b.node, "./cli/gnext", "1"}, {b.control, "./cli/nextstack", "0"}, {b.engine, "./test/crash/engine", "0"},
	} {
		if err := build(p.out, p.pkg, p.cgo, ""); err != nil {
			return b, err
		}
	}
	return b, nil
})

func build(out, pkg, cgo, ldflags string) error {
	// The flags are those of `make build`, so that its build cache serves here.
	tags := "faultpoints"
	if cgo == "1" && withCeph() {
		tags += " ceph pacific"
	}
	cmd := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-ldflags", strings.TrimSpace("-s -w "+ldflags), "-tags", tags, "-o", out, pkg)
	cmd.Dir, cmd.Env = root(), append(os.Environ(), "CGO_ENABLED="+cgo)
	if text, err := cmd.CombinedOutput(); err != nil {
		return &buildError{pkg, string(text), err}
	}
	return nil
}

// withCeph reports whether agents are built with their driver of Ceph pools.
func withCeph() bool {
	_, err := os.Stat("/usr/include/rbd/librbd.h")
	return err == nil
}

// OtherVersion is what OtherAgent says that it is.
const OtherVersion = "another"

// OtherAgent builds gnext once more, as OtherVersion, and returns where it is: what agents are upgraded to.
var OtherAgent = sync.OnceValues(func() (string, error) {
	b, err := built()
	if err != nil {
		return "", err
	}
	return b.node + "-" + OtherVersion, build(b.node+"-"+OtherVersion, "./cli/gnext", "1", "-X main.version="+OtherVersion)
})

// temporary is where the programs were built, if that is to be removed in the end.
var temporary string

// RemoveBinaries removes what was built for this test run. Call it in TestMain, after the tests.
func RemoveBinaries() {
	if temporary != "" {
		_ = os.RemoveAll(temporary)
	}
}

type buildError struct {
	pkg, output string
	err         error
}

func (e *buildError) Error() string {
	return "building " + e.pkg + ": " + e.err.Error() + "\n" + e.output
}
func (e *buildError) Unwrap() error { return e.err }
