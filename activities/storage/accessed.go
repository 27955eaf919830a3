package storage

import (
	"io/fs"
	"syscall"
	"time"
)

// accessed is when a file was used last: as we have noted it, or as the file system has seen it since.
func accessed(info fs.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Atim.Unix())
	}
	return info.ModTime()
}
