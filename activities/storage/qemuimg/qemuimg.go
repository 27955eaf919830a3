// Package qemuimg runs qemu-img, with limits and with every format named: QEMU must never guess what an image is.
package qemuimg

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Limits of one run. Sound images need far less; hostile ones must not take the machine with them.
const (
	addressSpace = 2 * api.GiB
	baseCPU      = 30 * time.Second
	// cpuPerGiB is for the runs that read a whole image.
	cpuPerGiB = 60 * time.Second
)

// leaked is qemu-img's exit status for an image whose only fault is clusters that nobody uses.
const leaked = 3

// Info is what qemu-img tells of an image.
type Info struct {
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual-size"`
	Backing     string `json:"backing-filename"`
	Encrypted   bool   `json:"encrypted"`
	ClusterSize int64  `json:"cluster-size"` // bytes
	Specific    struct {
		Data struct {
			Extents []struct {
				Filename string `json:"filename"`
			} `json:"extents"` // of a VMDK image
		} `json:"data"`
	} `json:"format-specific"`
}

// Resize gives an image of the given format another size; one that another process has open is in_use.
func Resize(ctx context.Context, path, format string, size int64) error {
	_, err := run(ctx, baseCPU, nil, "resize", "-q", "-f", format, "--", path, strconv.FormatInt(size, 10))
	return problem.Wrap(err, problem.Internal, "cannot resize volume %s", path)
}

// Commit brings what is in a qcow2 image into its backing file; it then shows nothing else than that, and is to be removed. It is
// not emptied: that takes time, and on GlusterFS fails, which says that it has zeroed what it has not. An image that another
// process has open is in_use. Size is that of the image in bytes; progress is told the percentage.
func Commit(ctx context.Context, path string, size int64, progress func(percent float64)) error {
	_, err := run(ctx, cpuFor(size), progress, "commit", "-d", "-p", "-f", "qcow2", "--", path)
	return problem.Wrap(err, problem.Internal, "cannot merge volume %s into the one below", path)
}

// Rebase writes another backing file into a qcow2 image, which must show the same as the one before.
func Rebase(ctx context.Context, path, backing string) error {
	_, err := run(ctx, baseCPU, nil, "rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, "--", path)
	return problem.Wrap(err, problem.Internal, "volume %s cannot be put on another one", path)
}

// Flatten copies all that a qcow2 image shows of its backing file into it, after which it has none. One that was interrupted shows the
// same as before: what was copied is durable, tables and all, before the header says that nothing is below, which qemu-img would not
// wait for by itself. An image that another process has open is in_use. Size is that of the image in bytes; progress is told the percentage.
func Flatten(ctx context.Context, path string, size int64, progress func(percent float64)) error {
	_, err := run(ctx, 2*cpuFor(size), progress, "rebase", "-p", "-t", "writethrough", "-f", "qcow2", "-b", "", "--", path)
	return problem.Wrap(err, problem.Internal, "volume %s cannot be made independent of the one below", path)
}

// Same reports whether two qcow2 images of about this size show the same; what one has more must be zero.
func Same(ctx context.Context, a, b string, size int64) (bool, error) {
	_, err := run(ctx, 2*cpuFor(size), nil, "compare", "-q", "-f", "qcow2", "-F", "qcow2", "--", a, b)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return false, nil
	}
	return err == nil, problem.Wrap(err, problem.Internal, "%s and %s cannot be compared", a, b)
}

// Inspect looks at an image, which is of the given format or invalid; one that another process writes to is in_use.
func Inspect(ctx context.Context, path, format string) (Info, error) {
	return inspect(ctx, path, format)
}

// InspectOpen is Inspect of an image that may be in use.
func InspectOpen(ctx context.Context, path, format string) (Info, error) {
	return inspect(ctx, path, format, "--force-share")
}

func inspect(ctx context.Context, path, format string, more ...string) (Info, error) {
	args := append([]string{"info", "--output=json", "-f", format}, more...)
	out, err := run(ctx, baseCPU, nil, append(args, "--", path)...)
	if err != nil {
		return Info{}, problem.Wrap(err, problem.Invalid, "the file cannot be opened as a %s image", format)
	}
	var i Info
	err = json.Unmarshal(out, &i)
	return i, problem.Wrap(err, problem.Internal, "what qemu-img tells of an image cannot be read")
}

// Check looks for errors in the structure of a qcow2 image; one that has any is invalid. Clusters that are merely lost to
// nobody's harm are none.
func Check(ctx context.Context, path string, size int64) error {
	_, err := run(ctx, cpuFor(size), nil, "check", "-q", "-f", "qcow2", "--", path)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == leaked {
		return nil
	}
	return problem.Wrap(err, problem.Invalid, "the image is damaged")
}

// Convert writes the image src, of the given format and size bytes large, to dst as qcow2. Progress is told the percentage. It is
// for images that are our own; ConvertStrange is for others.
func Convert(ctx context.Context, src, format, dst string, size int64, progress func(percent float64)) error {
	return ConvertTo(ctx, src, format, dst, api.FormatQCOW2, size, progress)
}

// ConvertTo is Convert to any format. A raw file has holes where the image has nothing.
func ConvertTo(ctx context.Context, src, format, dst, to string, size int64, progress func(percent float64)) error {
	_, err := run(ctx, cpuFor(size), progress, "convert", "-p", "-f", format, "-O", to, "--", src, dst)
	return problem.Wrap(err, problem.Internal, "the image cannot be converted")
}

func cpuFor(size int64) time.Duration { return baseCPU + time.Duration(size/api.GiB)*cpuPerGiB }

// run runs qemu-img and returns what it wrote.
func run(ctx context.Context, cpu time.Duration, progress func(float64), args ...string) ([]byte, error) {
	return start(ctx, cpu, nil, (*exec.Cmd).Run, progress, args...)
}

// start runs qemu-img under these limits, and further ones of prlimit, by do.
func start(ctx context.Context, cpu time.Duration, more []string, do func(*exec.Cmd) error, progress func(float64), args ...string) ([]byte, error) {
	return startIn(ctx, addressSpace, cpu, more, do, progress, args...)
}

// startIn is start with so many bytes of address space.
func startIn(ctx context.Context, space int64, cpu time.Duration, more []string, do func(*exec.Cmd) error, progress func(float64), args ...string) ([]byte, error) {
	limits := append([]string{"--as=" + strconv.FormatInt(space, 10), "--cpu=" + strconv.Itoa(int(cpu.Seconds())), "--core=0"}, more...)
	// It dies with us: one that goes on would be in the way of whoever does it again. The signal is bound to the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "prlimit", append(append(limits, "qemu-img"), args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	var out, errs bytes.Buffer
	cmd.Stderr = &errs
	if progress == nil {
		cmd.Stdout = &out
	} else {
		cmd.Stdout = &percents{report: progress}
	}
	err := do(cmd)
	switch {
	case err == nil:
		return out.Bytes(), nil
	case ctx.Err() != nil:
		return nil, problem.New(problem.Cancelled, "qemu-img %s was stopped", args[0])
	case errors.Is(err, exec.ErrNotFound):
		return nil, problem.New(problem.Unavailable, "qemu-img cannot be run").Because("%s", err).Try("install the packages qemu-utils and util-linux")
	case strings.Contains(errs.String(), "lock\nIs another process using the image"):
		return nil, problem.New(problem.InUse, "the image is in use").Because("another process holds QEMU's lock on it")
	case strings.Contains(errs.String(), "No space left on device"):
		return nil, problem.New(problem.NoCapacity, "there is no space left").Because("%s", lastLine(errs.Bytes()))
	default:
		return nil, &failure{err: err, why: lastLine(errs.Bytes())}
	}
}

// failure is an exit of qemu-img with its last words.
type failure struct {
	err error
	why string
}

func (f *failure) Error() string {
	if f.why == "" {
		return "qemu-img: " + f.err.Error()
	}
	return f.why
}
func (f *failure) Unwrap() error { return f.err }

// lastLine returns the last line that says something; usage hints and blank lines do not. It is cut to a length that fits
// into an error.
func lastLine(b []byte) string {
	var last string
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if t := strings.TrimSpace(s.Text()); t != "" && !strings.HasPrefix(t, "Try 'qemu-img") {
			last = t
		}
	}
	return last[:min(len(last), 500)]
}

// percents reads "    (12.34/100%)\r" as qemu-img -p writes it.
type percents struct {
	report func(float64)
	rest   []byte
}

func (p *percents) Write(b []byte) (int, error) {
	p.rest = append(p.rest, b...)
	for {
		open := bytes.IndexByte(p.rest, '(')
		end := bytes.Index(p.rest, []byte("/100%)"))
		if open < 0 || end < 0 {
			break
		}
		if end > open {
			if v, err := strconv.ParseFloat(string(p.rest[open+1:end]), 64); err == nil {
				p.report(v)
			}
		}
		p.rest = p.rest[end+len("/100%)"):]
	}
	if len(p.rest) > 1024 { // not what we think it is
		p.rest = nil
	}
	return len(b), nil
}
