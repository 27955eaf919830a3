package images

// Unpack sets how many bytes an image may have unpacked, however small it is.
func (s *Store) Unpack(bytes int64) { s.unpacked = bytes }

// Public is whether an address may be connected to that nobody has named.
var Public = public
