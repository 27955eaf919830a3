//go:build ceph && cgo

package storage_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/rbd"
	"github.com/nextstack/nextstack/workflows/steps"
)

// cephDriver makes the driver of Ceph for a deed.
func cephDriver(d deed) storage.Pool {
	return rbd.New(rbd.Config{Key: func(context.Context, string) (string, error) { return d.Key, nil }, TempDir: d.Dir})
}

// mortal is a hand for pools of Ceph whose driver may die.
type mortal struct {
	devices
	key string
}

func (m mortal) kill(t *testing.T, d deed, n int) killed {
	t.Helper()
	d.Dir, d.Key = t.TempDir(), m.key
	return runDeed(t, d, network, n)
}

// TestRBDKilled: what is counted is what librbd sends.
func TestRBDKilled(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "killed")
	c.impatient(t)
	d := rbd.New(rbd.Config{Key: key, TempDir: t.TempDir()})
	w := newWorldOn(t, d, func(*testing.T) steps.PoolOnNode { return p }, empty)
	_, err := d.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	k, err := key(t.Context(), "")
	require.NoError(t, err)
	killAnywhere(t, &stand{world: w, hand: mortal{devices{c}, k}}, 2, 12)
}
