//go:build !ceph || !cgo

package rbd

import "github.com/nextstack/nextstack/activities/storage"

// New returns nil: this program was built without Ceph.
func New(Config) storage.Pool { return nil }
