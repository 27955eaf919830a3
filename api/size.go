package api

import (
	"strconv"
	"strings"
)

// Size writes n bytes with the unit that fits, to one decimal if there must be one: "1.5G".
func Size(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"T", TiB}, {"G", GiB}, {"M", MiB}, {"K", KiB}} {
		if n >= u.size || n <= -u.size {
			if n%u.size == 0 {
				return strconv.FormatInt(n/u.size, 10) + u.name
			}
			return strings.TrimSuffix(strconv.FormatFloat(float64(n)/float64(u.size), 'f', 1, 64), ".0") + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// ExactSize writes n bytes as people and flags do, "64M" or "200G", in the largest unit of which it is a whole number.
func ExactSize(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"T", TiB}, {"G", GiB}, {"M", MiB}, {"K", KiB}} {
		if n != 0 && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + " bytes"
}
