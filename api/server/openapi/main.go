// Command openapi writes the OpenAPI document of the API to the file that it is given, or to standard output.
package main

import (
	"fmt"
	"os"

	"github.com/nextstack/nextstack/api/server"
)

func main() {
	doc := server.New(server.Options{}).OpenAPI()
	var err error
	if len(os.Args) > 1 {
		err = os.WriteFile(os.Args[1], doc, 0o644) //nolint:gosec // it is meant to be read by everybody
	} else {
		_, err = os.Stdout.Write(doc)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "openapi:", err)
		os.Exit(1)
	}
}
