package images

// Unpack sets how many bytes an image may have unpacked, however small it is.
func (s *Store) Unpack(bytes int64) { s.unpacked = bytes }
