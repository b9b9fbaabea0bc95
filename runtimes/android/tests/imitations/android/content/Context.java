package android.content;

import java.io.File;

public class Context {
    public File getFilesDir() {
        return null;
    }

    public File getExternalFilesDir(String type) {
        return null;
    }
}
