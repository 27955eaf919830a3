package storage

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

const (
	markerName = ".nextstack-pool"
	probeName  = ".probe"
)

// marker says which pool a directory is. One that an older version has written names no agent.
type marker struct {
	Pool   string `json:"pool"` // is made for each request anew, so nobody has this marker by chance
	Type   string `json:"type"`
	Agent  string `json:"agent,omitempty"` // that made the directory a pool
	Shared bool   `json:"shared,omitempty"`
	Made   int    `json:"made,omitempty"` // how many directories of its path were not there before, the last ones
}

// errNoMarker says that what has the name of a marker is none.
var errNoMarker = errors.New("it is not a marker of NextStack")

// claimTries bounds how often claim looks again because another agent has written the marker in the same moment.
const claimTries = 5

// claim writes the marker, unless the directory belongs to somebody else or another agent has to write it. Agents that try it
// in the same moment may see the same directory without anybody having said so: only one of them writes, the others look at
// what it has written.
func claim(root *os.Root, p steps.PoolOnNode, made int) (err error) {
	for range claimTries {
		if err = tryClaim(root, p, made); !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return problem.Wrap(err, problem.Unavailable, "the marker of %s comes and goes", p.Path)
}

func tryClaim(root *os.Root, p steps.PoolOnNode, made int) error {
	m, err := readMarker(root)
	switch {
	case err == nil && m.Pool == p.Pool:
		if !p.Shared && m.Agent != "" && p.Agent != "" && m.Agent != p.Agent {
			return problem.New(problem.Conflict, "two agents of the pool see the same files in %s", p.Path).Because("agent %s has made it a pool already", m.Agent).
				Try("add the pool with --shared, or give each agent a directory of its own")
		}
		return nil
	case err == nil && p.Join:
		return notJoined(p, "it is pool "+m.Pool+" here")
	case err == nil:
		return problem.New(problem.Conflict, "%s is pool %s already", p.Path, m.Pool).Try("choose another directory")
	case !errors.Is(err, fs.ErrNotExist):
		return problem.Wrap(err, problem.Conflict, "the marker of %s cannot be read", p.Path)
	case p.Join:
		return notJoined(p, "its marker "+markerName+" is missing here")
	}
	if err := errors.Join(above(p), below(root, p)); err != nil {
		return err
	}
	b, err := json.Marshal(marker{Pool: p.Pool, Type: p.Type, Agent: p.Agent, Shared: p.Shared, Made: made})
	if err == nil {
		err = writeNew(root, markerName, p.Agent, b)
	}
	if errors.Is(err, fs.ErrExist) {
		return err
	}
	return problem.Wrap(err, problem.Invalid, "%s cannot be a pool", p.Path)
}

// above refuses a directory that is somewhere in another pool: what is taken away with that one would be this one's.
func above(p steps.PoolOnNode) error {
	real, err := filepath.EvalSymlinks(p.Path)
	if err != nil {
		return unusable(p.Path, err)
	}
	for dir := filepath.Dir(real); ; dir = filepath.Dir(dir) {
		_, err := os.Lstat(filepath.Join(dir, markerName))
		if err == nil {
			return problem.New(problem.Conflict, "%s cannot be a pool", p.Path).Because("it is inside %s, which is one", dir).Try("choose a directory that is in no pool")
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return unusable(p.Path, err)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// below refuses a directory with things that would become the pool's, another pool among them. It is before anything is written:
// what is refused here has nothing to be released.
func below(root *os.Root, p steps.PoolOnNode) error {
	for _, name := range poolDirs {
		info, err := root.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && !info.IsDir() {
			err = errors.New(name + " in it is not a directory")
		}
		if err != nil {
			return unusable(p.Path, err)
		}
		entries, err := fs.ReadDir(root.FS(), name)
		if err != nil {
			return unusable(p.Path, err)
		}
		if len(entries) == 0 {
			continue
		}
		no := problem.New(problem.Conflict, "%s cannot be a pool", p.Path).Try("choose another directory")
		if _, err := root.Lstat(name + "/" + markerName); err == nil {
			return no.Because("%s in it is a pool", name)
		}
		return no.Because("%s in it is not empty, and was not made by NextStack", name)
	}
	return nil
}

// notJoined says that this node does not see what another agent has made of the directory.
func notJoined(p steps.PoolOnNode, why string) error {
	return problem.New(problem.Conflict, "%s is not what the other agents of the pool see: %s", p.Path, why).
		Try("mount the same file system there, or leave --shared out")
}

// readMarker says which pool the directory is: fs.ErrNotExist if it is none, and errNoMarker if somebody else has made something
// of that name.
func readMarker(root *os.Root) (m marker, err error) {
	info, err := root.Lstat(markerName)
	if err != nil {
		return m, err
	}
	if !info.Mode().IsRegular() {
		return m, errNoMarker
	}
	b, err := root.ReadFile(markerName)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, errors.Join(errNoMarker, err)
	}
	return m, nil
}

// tryOut does to the directory what will be done to it later: a read-only or full file system shows now, and one on which
// nodes cannot take turns.
func tryOut(root *os.Root, p steps.PoolOnNode) error {
	probe := backingDir + "/" + probeName // not with the volumes: what a crash leaves here is no volume
	if p.Agent != "" {
		probe += "-" + p.Agent // others may be trying, too
	}
	if err := writeFile(root, probe, make([]byte, 4096)); err != nil {
		return err
	}
	if err := root.Remove(probe); err != nil || !p.Shared {
		return err
	}
	f, err := root.OpenFile(markerName, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written; ends the lock
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return problem.New(problem.Unsupported, "%s cannot be a shared pool", p.Path).Because("its file system has no file locks (flock): %s", err).
			Try("mount it with locks, as NFS without nolock and local_lock")
	}
	return nil
}
