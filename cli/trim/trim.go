//go:build linux

// Package trim gives memory back that only the start of a program needed.
package trim

import (
	"bufio"
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Code unmaps the pages of the program and its libraries that have been touched so far: most of what a start runs is never run
// again. Only clean pages of files go, so whatever is needed after all comes back by itself, from the page cache. Of libraries
// only the code goes: their tables are written to when they are loaded, and one may be loaded at this moment.
func Code() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	smaps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer smaps.Close()
	var here mapping
	var clean []mapping
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) == 0 {
			continue
		}
		if !strings.HasSuffix(f[0], ":") {
			here = parse(f, exe)
			continue
		}
		if f[0] == "Anonymous:" && here.clean && len(f) > 1 && f[1] == "0" {
			clean = append(clean, here)
		}
	}
	errs := []error{lines.Err()}
	for _, m := range clean {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			errs = append(errs, errno)
		}
	}
	return errors.Join(errs...)
}

// mapping is one of the process's.
type mapping struct {
	start, end uintptr
	clean      bool // private, of a file, and not to be written to
}

// parse reads the head of a mapping in smaps: "from-to perms offset device inode path".
func parse(f []string, exe string) mapping {
	from, to, ok := strings.Cut(f[0], "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	if !ok || err1 != nil || err2 != nil || len(f) != 6 || len(f[1]) != 4 {
		return mapping{}
	}
	perms := f[1]
	code := strings.HasPrefix(f[5], "/") && perms[2] == 'x' || f[5] == exe
	return mapping{uintptr(start), uintptr(end), code && perms[1] == '-' && perms[3] == 'p'}
}
