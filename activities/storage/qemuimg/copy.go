package qemuimg

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Disk is a disk of our own as QEMU opens it: a file, or a device of a cluster.
type Disk struct {
	// Options are those of QEMU's block driver, its format included: nothing is guessed.
	Options map[string]any
	Size    int64  // bytes that a guest sees
	Key     string // secret, in base64, that Options ask for by the name of SecretOption; it is in no argument and no file
	Rate    int64  // bytes per second at which it is copied at most; 0: no limit
}

// SecretOption is the name of the option of a block driver that says which secret it needs.
const SecretOption = "key-secret"

// File returns a file as a disk.
func File(path, format string, size int64) Disk {
	return Disk{Options: map[string]any{"driver": format, "file": map[string]any{"driver": "file", "filename": path}}, Size: size}
}

// clusterSpace is for QEMU with a library of a cluster in it, which has many threads.
const clusterSpace = 16 * api.GiB

// Copy writes what from shows into to, which is there, as large at least, and all zeroes. Holes stay holes. Progress is told the
// percentage.
func Copy(ctx context.Context, from, to Disk, progress func(percent float64)) error {
	format, _ := to.Options["driver"].(string)
	args := []string{"convert", "-p", "-n", "--target-is-zero", "-O", format}
	if from.Rate > 0 {
		args = append(args, "-r", strconv.FormatInt(from.Rate, 10))
	}
	var keys []*os.File
	defer func() {
		for _, k := range keys {
			k.Close() //nolint:errcheck // was only read
		}
	}()
	var names []string
	for i, d := range []*Disk{&from, &to} {
		if d.Key != "" {
			f, err := inMemory(d.Key)
			if err != nil {
				return err
			}
			id := "key" + strconv.Itoa(i)
			keys = append(keys, f)
			args = append(args, "--object", fmt.Sprintf("secret,id=%s,format=base64,file=/proc/self/fd/%d", id, 2+len(keys)))
			d.Options = withSecret(d.Options, id)
		}
		b, err := json.Marshal(d.Options)
		if err != nil {
			return problem.Wrap(err, problem.Internal, "a disk cannot be named for qemu-img")
		}
		names = append(names, "json:"+string(b))
	}
	space := addressSpace
	if len(keys) > 0 {
		space = clusterSpace
	}
	run := func(cmd *exec.Cmd) error {
		cmd.ExtraFiles = keys
		return cmd.Run()
	}
	_, err := startIn(ctx, space, cpuFor(from.Size), nil, run, progress, append(append(args, "--"), names...)...)
	return problem.Wrap(err, problem.Internal, "the disk cannot be copied")
}

// withSecret returns options in which whoever needs a secret is told its name.
func withSecret(options map[string]any, id string) map[string]any {
	out := make(map[string]any, len(options))
	for k, v := range options {
		switch v := v.(type) {
		case map[string]any:
			out[k] = withSecret(v, id)
		default:
			out[k] = v
		}
		if k == SecretOption {
			out[k] = id
		}
	}
	return out
}

// inMemory returns a file that is nowhere but in memory.
func inMemory(content string) (*os.File, error) {
	fd, err := unix.MemfdCreate("key", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, problem.Wrap(err, problem.Internal, "a key cannot be handed to qemu-img")
	}
	f := os.NewFile(uintptr(fd), "key")
	if _, err := f.WriteAt([]byte(content), 0); err != nil {
		f.Close() //nolint:errcheck // it is given up
		return nil, problem.Wrap(err, problem.Internal, "a key cannot be handed to qemu-img")
	}
	return f, nil
}
