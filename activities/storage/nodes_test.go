package storage_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// nodes are two nodes that both see what is below net. At own they have different directories.
type nodes struct {
	a, b     storage.Pool
	net, own string
	rounds   int // how often what is a matter of chance is tried; 0: often
}

func fakes(t *testing.T) nodes {
	net, dir := &storage.Fake{}, t.TempDir()
	return nodes{a: &storage.Fake{Net: net, NetDir: dir}, b: &storage.Fake{Net: net, NetDir: dir}, net: dir, own: "/own"}
}

func dirs(t *testing.T) nodes {
	base := t.TempDir()
	for _, name := range []string{"a", "b", "net"} {
		require.NoError(t, os.Mkdir(filepath.Join(base, name), 0o755))
	}
	own := filepath.Join(base, "own")
	require.NoError(t, os.Symlink("a", own))
	return nodes{a: local{storage.NewDir(nil), "a", own}, b: local{storage.NewDir(nil), "b", own}, net: filepath.Join(base, "net"), own: own}
}

// local is a pool driver on a node that has a directory of its own where others have theirs. It shows while something is
// opened, so only one node at a time may begin something there.
type local struct {
	storage.Pool
	mine, link string
}

// show makes the node's own directory the one that is there, until hide is called.
func (l local) show() (hide func()) {
	was, err := os.Readlink(l.link)
	point := func(to string) error {
		return errors.Join(os.Symlink(to, l.link+".new"), os.Rename(l.link+".new", l.link))
	}
	if err = errors.Join(err, point(l.mine)); err != nil {
		panic(err)
	}
	return func() {
		if err := point(was); err != nil {
			panic(err)
		}
	}
}

func (l local) Prepare(ctx context.Context, p steps.PoolOnNode) (api.PoolUsage, error) {
	if strings.HasPrefix(p.Path, l.link) {
		defer l.show()()
	}
	return l.Pool.Prepare(ctx, p)
}

func (l local) MakeDisk(ctx context.Context, plan steps.VMPlan, src storage.Source, progress func(string)) error {
	if strings.HasPrefix(plan.Disk.PoolPath, l.link) {
		defer l.show()()
	}
	return l.Pool.MakeDisk(ctx, plan, src, progress)
}

func (l local) RemoveDisk(ctx context.Context, plan steps.VMPlan) error {
	if strings.HasPrefix(plan.Disk.PoolPath, l.link) {
		defer l.show()()
	}
	return l.Pool.RemoveDisk(ctx, plan)
}

func (l local) OpenDisk(ctx context.Context, plan steps.VMPlan) (storage.Disk, error) {
	if strings.HasPrefix(plan.Disk.PoolPath, l.link) {
		defer l.show()()
	}
	return l.Pool.OpenDisk(ctx, plan)
}

func (l local) ReceiveDisk(ctx context.Context, plan steps.VMPlan, src storage.Source, fetch func(context.Context) (io.ReadCloser, error), tell func(api.Progress)) error {
	if strings.HasPrefix(plan.Disk.PoolPath, l.link) {
		defer l.show()()
	}
	return l.Pool.ReceiveDisk(ctx, plan, src, fetch, tell)
}

func (l local) List(ctx context.Context, p steps.PoolOnNode) ([]steps.FileFound, error) {
	if strings.HasPrefix(p.Path, l.link) {
		defer l.show()()
	}
	return l.Pool.List(ctx, p)
}
