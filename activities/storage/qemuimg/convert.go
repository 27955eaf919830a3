package qemuimg

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Image is a file that nobody vouches for. It is opened by itself: no backing file is looked for, whatever it says.
type Image struct {
	Path, Format      string
	Size, VirtualSize int64 // bytes of the file, and that a guest sees, as its header has it
}

// Limits bound what is made of an image.
type Limits struct {
	File int64         // bytes of what is written; 0: what the virtual size and its tables take
	CPU  time.Duration // 0: by the size of the image
}

// cpuPerTiB is for going through the tables of a disk that is mostly empty.
const cpuPerTiB = 5 * time.Minute

// cpu is how long qemu-img may compute on an image.
func (i Image) cpu() time.Duration {
	return cpuFor(i.Size) + time.Duration(float64(i.VirtualSize)/float64(api.TiB)*float64(cpuPerTiB))
}

// arg names the image for qemu-img with all that it must not guess.
func (i Image) arg() string {
	options := map[string]any{"driver": i.Format, "file": map[string]any{"driver": "file", "filename": i.Path}}
	switch i.Format {
	case api.FormatQCOW2, api.FormatVMDK:
		options["backing"] = nil // there is none, and none is opened
	case api.FormatVPC:
		options["force_size_calc"] = "current_size" // not what the geometry has, which is rounded
	}
	b, err := json.Marshal(options)
	if err != nil { // it cannot: there are only strings in it
		return ""
	}
	return "json:" + string(b)
}

// Look tells what qemu-img sees in an image; it opens nothing but the file. One that is not of its format is invalid.
func Look(ctx context.Context, i Image) (Info, error) {
	out, err := i.run(ctx, baseCPU, access{}, 0, nil, "info", "--output=json", "--", i.arg())
	if err != nil {
		return Info{}, problem.Wrap(err, problem.Invalid, "the file cannot be opened as a %s image", i.Format)
	}
	var info Info
	err = json.Unmarshal(out, &info)
	return info, problem.Wrap(err, problem.Internal, "what qemu-img tells of an image cannot be read")
}

// Checked is what a check of an image counts.
type Checked struct {
	Allocated int64 `json:"allocated-clusters"` // of the disk that have data; 0 if the format does not tell
}

// noChecks is qemu-img's exit status for formats that it cannot check.
const noChecks = 63

// CheckStrange looks for errors in the structure of an image; one that has any is invalid. Of formats that qemu-img cannot check
// it says nothing.
func CheckStrange(ctx context.Context, i Image) (Checked, error) {
	out, err := i.run(ctx, i.cpu(), access{}, 0, nil, "check", "--output=json", "--", i.arg())
	var exit *exec.ExitError
	if errors.As(err, &exit) && (exit.ExitCode() == leaked || exit.ExitCode() == noChecks) {
		err = nil
	}
	if err != nil {
		return Checked{}, problem.Wrap(err, problem.Invalid, "the image is damaged")
	}
	var c Checked
	if len(out) > 0 {
		err = json.Unmarshal(out, &c)
	}
	return c, problem.Wrap(err, problem.Internal, "what qemu-img tells of an image cannot be read")
}

// ConvertStrange writes an image to the new file dst, in the format to. Progress, unless nil, is told the percentage. An image that
// takes more than its limits is invalid.
func ConvertStrange(ctx context.Context, i Image, dst, to string, l Limits, progress func(percent float64)) error {
	if l.CPU == 0 {
		l.CPU = i.cpu()
	}
	if l.File == 0 {
		l.File = i.VirtualSize + i.VirtualSize/64 + 64*api.MiB
	}
	f, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // who is confined can make no files
	if err != nil {
		return problem.Wrap(err, problem.Internal, "the image cannot be converted")
	}
	if err := f.Close(); err != nil {
		return problem.Wrap(err, problem.Internal, "the image cannot be converted")
	}
	args := []string{"convert", "-p", "-O", to}
	if to == api.FormatVPC {
		args = append(args, "-o", "force_size=on") // not rounded to what a geometry can have
	}
	args = append(args, "--", i.arg(), dst)
	if progress == nil {
		progress = func(float64) {}
	}
	_, err = i.run(ctx, l.CPU, access{write: []string{dst}}, l.File, progress, args...)
	return problem.Wrap(err, problem.Internal, "the image cannot be converted")
}

// run runs qemu-img such that it reaches only the image and these files, and writes none larger than limit; 0: none at all.
func (i Image) run(ctx context.Context, cpu time.Duration, files access, limit int64, progress func(float64), args ...string) ([]byte, error) {
	files.read = append(files.read, i.Path)
	out, err := start(ctx, cpu, []string{"--fsize=" + strconv.FormatInt(limit, 10)}, func(cmd *exec.Cmd) error { return confine(cmd, files) }, progress, args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return out, err
	}
	if f := new(failure); errors.As(err, &f) { // users do not know our names of files
		f.why = strings.NewReplacer("qemu-img: ", "", i.arg(), "image", i.Path, "image").Replace(f.why)
	}
	status, _ := exit.Sys().(syscall.WaitStatus)
	switch {
	case status.Signaled() && status.Signal() == unix.SIGXFSZ, strings.Contains(err.Error(), "File too large"):
		return nil, problem.New(problem.Invalid, "the image is refused").Because("unpacked it takes more than %d bytes, far more than it has: it looks as if it was made to fill the server", limit).
			Try("make a smaller image, or unpack it where it is: `qemu-img convert -O raw IMAGE NEW`, and import that")
	case status.Signaled() && (status.Signal() == unix.SIGXCPU || status.Signal() == unix.SIGKILL && ctx.Err() == nil):
		return nil, problem.New(problem.Invalid, "the image is refused").Because("qemu-img has computed on it for %s and was not done", cpu).
			Try("convert it where it is: `qemu-img convert -O qcow2 IMAGE NEW`")
	}
	return out, err
}
