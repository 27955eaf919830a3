package main

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// trimExecutable gives back the pages of the program that only its start needed: most of the embedded servers' code is never
// run again. They are clean pages of a file, so whatever is needed after all comes back by itself, from the page cache.
func trimExecutable() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		// Only what cannot have been written to.
		if len(f) < 6 || f[5] != exe || len(f[1]) != 4 || f[1][1] != '-' {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		start, err := strconv.ParseUint(from, 16, 64)
		if err != nil {
			return err
		}
		end, err := strconv.ParseUint(to, 16, 64)
		if err != nil {
			return err
		}
		if err := madvise(uintptr(start), uintptr(end-start)); err != nil {
			return err
		}
	}
	return lines.Err()
}

func madvise(start, length uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, start, length, unix.MADV_DONTNEED); errno != 0 {
		return errno
	}
	return nil
}
