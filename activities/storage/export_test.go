package storage

import "time"

// SetPatience makes d wait for a silent peer no longer than this.
func (d *Dir) SetPatience(p time.Duration) { d.patience = p }
