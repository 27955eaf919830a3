//go:build unix

package command

import (
	"errors"
	"os"
	"syscall"
)

// alone reports whether no other gnext on this machine sends the file now; it counts as being sent from here until leave is called. Where
// that cannot be found out, it is taken to be so.
func alone(name string) (is bool, leave func()) {
	info, err := os.Stat(name)
	if err != nil || !info.Mode().IsRegular() { // opening a pipe would wait for its writer
		return true, func() {}
	}
	f, err := os.Open(name)
	if err != nil {
		return true, func() {}
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	return !errors.Is(err, syscall.EWOULDBLOCK), func() { _ = f.Close() }
}
