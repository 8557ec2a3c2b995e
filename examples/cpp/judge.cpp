// Judges grey pictures by a model file alone: ONNX Runtime, no Python, no image library.
//
//   judge MODEL.onnx PICTURE.pgm...
//
// The model decides itself: `magtiles-seg export --to onnx --with-decision --out artefacts/`.
// For each picture one line, "PICTURE verdict score", and the mask as PICTURE.mask.pgm (255 is
// defect). Exit code: 0 all accepted, 1 some not, 2 an error.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

struct Picture {
    std::int64_t width = 0, height = 0;
    std::vector<std::uint8_t> pixels;  // row by row, 0 black to 255 white
};

// One number of a PGM header: white space and comments stand before it.
std::int64_t read_number(std::istream& file) {
    for (file >> std::ws; file.peek() == '#'; file >> std::ws) {
        std::string comment;
        std::getline(file, comment);
    }
    std::int64_t number = 0;
    if (!(file >> number)) throw std::runtime_error("its header is damaged");
    return number;
}

Picture read_pgm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("it cannot be opened");
    std::string magic(2, ' ');
    file.read(magic.data(), 2);
    if (magic != "P5") throw std::runtime_error("it is no binary PGM file (P5)");
    Picture picture;
    picture.width = read_number(file);
    picture.height = read_number(file);
    if (read_number(file) != 255) throw std::runtime_error("expected 8 bits a pixel (255)");
    const auto [least, most] = std::minmax(picture.width, picture.height);
    if (least < 32 || most > 32768) throw std::runtime_error("expected sides of 32 to 32768 px");
    file.get();  // the one white space behind the header
    picture.pixels.resize(static_cast<std::size_t>(picture.width * picture.height));
    file.read(reinterpret_cast<char*>(picture.pixels.data()),
              static_cast<std::streamsize>(picture.pixels.size()));
    if (!file) throw std::runtime_error("it ends too early");
    return picture;
}

void write_mask(const std::string& path, const Picture& picture, const std::uint8_t* mask) {
    std::vector<std::uint8_t> grey(picture.pixels.size());
    std::transform(mask, mask + grey.size(), grey.begin(),
                   [](std::uint8_t pixel) { return static_cast<std::uint8_t>(pixel * 255); });
    std::ofstream file(path, std::ios::binary);
    file << "P5\n" << picture.width << ' ' << picture.height << "\n255\n";
    file.write(reinterpret_cast<const char*>(grey.data()),
               static_cast<std::streamsize>(grey.size()));
    if (!file.flush()) throw std::runtime_error("its mask cannot be written: " + path);
}

// Prints one line, writes the mask, and returns 0 accept, 1 review or 2 reject.
int judge(Ort::Session& session, const std::string& path) {
    static const std::array<const char*, 3> verdicts{"accept", "review", "reject"};
    static const std::array<const char*, 1> inputs{"image"};
    static const std::array<const char*, 3> outputs{"mask", "score", "verdict"};
    Picture picture = read_pgm(path);
    const std::array<std::int64_t, 3> shape{1, picture.height, picture.width};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto image = Ort::Value::CreateTensor<std::uint8_t>(
        memory, picture.pixels.data(), picture.pixels.size(), shape.data(), shape.size());
    const auto answer = session.Run(Ort::RunOptions{nullptr}, inputs.data(), &image, 1,
                                    outputs.data(), outputs.size());
    write_mask(path + ".mask.pgm", picture, answer[0].GetTensorData<std::uint8_t>());
    const int verdict = *answer[2].GetTensorData<std::uint8_t>();
    std::printf("%s %s %.6f\n", path.c_str(), verdicts.at(static_cast<std::size_t>(verdict)),
                static_cast<double>(*answer[1].GetTensorData<float>()));
    return verdict;
}

int main(int count, char** words) {
    if (count < 3) {
        std::cerr << "usage: judge MODEL.onnx PICTURE.pgm...\n";
        return 2;
    }
    std::string subject = words[1];
    try {
        const Ort::Env environment(ORT_LOGGING_LEVEL_FATAL, "judge");
        Ort::Session session(environment, words[1], Ort::SessionOptions{nullptr});
        if (session.GetOutputCount() != 5)
            throw std::runtime_error("it does not decide: export it with --with-decision");
        int worst = 0;
        for (int index = 2; index < count; ++index) {
            subject = words[index];
            worst = std::max(worst, judge(session, subject));
        }
        subject = "standard output";
        if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
            throw std::runtime_error("the verdicts cannot be written");
        return worst == 0 ? 0 : 1;
    } catch (const std::exception& error) {
        std::cerr << subject << ": " << error.what() << '\n';
        return 2;
    }
}
