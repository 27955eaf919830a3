//go:build !faultpoints

package activities

// FaultPoints returns no Hook: crash tests build with the tag "faultpoints".
func FaultPoints() Hook { return nil }
