package libvirt

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// maxConsole is how large a console log may grow, in bytes. Where virtlogd writes the logs it turns them over earlier by
// itself; where QEMU does, nobody else would, and a guest could fill the node's disk.
const maxConsole = 4 * api.MiB

func oldConsole(dir, vm string) string { return domain.ConsoleLog(dir, vm) + ".old" }

// TrimConsoles turns over the console logs that have grown too large: the last part is kept as FILE.old, and FILE begins
// anew. QEMU appends, so it goes on at the new beginning. Call it every few seconds.
func (d *Driver) TrimConsoles() error {
	if d.opt.ConsoleDir == "" {
		return nil
	}
	entries, err := os.ReadDir(d.opt.ConsoleDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return problem.Wrap(err, problem.Internal, "the console logs in %s cannot be listed", d.opt.ConsoleDir)
	}
	var errs []error
	for _, e := range entries {
		vm, ok := strings.CutSuffix(e.Name(), ".log")
		if !ok || !api.IsUUID(vm) || !e.Type().IsRegular() {
			continue
		}
		if info, err := e.Info(); err == nil && info.Size() > maxConsole {
			errs = append(errs, turnOver(filepath.Join(d.opt.ConsoleDir, e.Name()), info.Size()))
		}
	}
	return problem.Wrap(errors.Join(errs...), problem.Internal, "a console log cannot be shortened")
}

func turnOver(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // the truncation below reports its own error
	old, err := os.OpenFile(path+".old", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(old, io.NewSectionReader(f, size-maxConsole/2, maxConsole/2))
	return errors.Join(err, old.Close(), f.Truncate(0))
}
