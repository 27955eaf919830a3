package storage

import (
	"time"

	"github.com/nextstack/nextstack/api"
)

// SetPatience makes d wait for a silent peer no longer than this.
func (d *Dir) SetPatience(p time.Duration) { d.patience = p }

// SetRoom makes d believe that pools have this much room.
func (d *Dir) SetRoom(room func(path string) api.PoolUsage) { d.room = room }

// Detach takes the mount of a pool away, as if somebody had unmounted it.
func (m *Mounts) Detach(path string) error { return m.detach(path) }
