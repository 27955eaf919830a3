package command

import (
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/nextstack/nextstack/api/problem"
)

// unreadable says that a file of this machine cannot be read, and what to do about it.
func unreadable(err error, name string) error {
	p := problem.Caused(err, problem.Invalid, "cannot read %s", name)
	switch path, where := filepath.Abs(name); {
	case errors.Is(err, fs.ErrNotExist) && where == nil && path != name:
		return p.Try("check the path: it was looked for at %s", path)
	case errors.Is(err, fs.ErrNotExist):
		return p.Try("check the path: it must be a file of the machine that this command runs on")
	case errors.Is(err, fs.ErrPermission):
		return p.Try("let this user read it, or run the command as one who may")
	default:
		return p.Try("give a file that can be read")
	}
}
